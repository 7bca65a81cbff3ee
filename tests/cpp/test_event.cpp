// What the client remembers of events and user objects by itself.
#include <doctest/doctest.h>

#include "guest/runtime/manual/event.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/user_object.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

TEST_CASE("a record is the word and the value at which it shows") {
  const u64 record = pack_record(8191, 0xffff'ffff'fffe);
  CHECK(record_word(record) == 8191);
  CHECK(record_value(record) == 0xffff'ffff'fffe);
  CHECK(record != kRecordedInCapture);
}

TEST_CASE("of two records of one event the later one counts, whichever thread is told first") {
  Event event;
  set_recorded(event, 3, 100);
  set_recorded(event, 4, 90);
  CHECK(event.recorded.load() == pack_record(3, 100));
  set_recorded(event, 4, 101);
  CHECK(event.recorded.load() == pack_record(4, 101));
  event.recorded.store(kRecordedInCapture);
  set_recorded(event, 1, 5);
  CHECK(event.recorded.load() == pack_record(1, 5));
}

TEST_CASE("a user object ends with its last reference, wherever that is held") {
  int ended = 0;
  CUuserObject handle = nullptr;
  const auto destroy = [](void* count) { ++*static_cast<int*>(count); };
  REQUIRE(api::cuUserObjectCreate(&handle, &ended, destroy, 1, CU_USER_OBJECT_NO_DESTRUCTOR_SYNC) ==
          CUDA_SUCCESS);
  auto* object = reinterpret_cast<UserObject*>(handle);
  {
    std::vector<UserReference> held;
    retain(*object, 2);
    held.emplace_back(object, 2);
    std::vector<UserReference> copied = held;
    CHECK(object->references.load() == 5);
    CHECK(api::cuUserObjectRelease(handle, 1) == CUDA_SUCCESS);
    held.clear();
    CHECK(object->references.load() == 2);
    CHECK(!copied.front().drop(3));
    CHECK(copied.front().drop(1));  // ours to release now
    CHECK(release(*object, 1));
    CHECK(ended == 0);
  }
  CHECK(ended == 1);
  CHECK(api::cuUserObjectRetain(handle, 1) == CUDA_ERROR_INVALID_VALUE);
}

TEST_CASE("user objects are checked as the driver checks them") {
  CUuserObject handle = nullptr;
  const auto destroy = [](void*) {};
  CHECK(api::cuUserObjectCreate(nullptr, nullptr, destroy, 1, 1) == CUDA_ERROR_INVALID_VALUE);
  CHECK(api::cuUserObjectCreate(&handle, nullptr, nullptr, 1, 1) == CUDA_ERROR_INVALID_VALUE);
  CHECK(api::cuUserObjectCreate(&handle, nullptr, destroy, 0, 1) == CUDA_ERROR_INVALID_VALUE);
  CHECK(api::cuUserObjectCreate(&handle, nullptr, destroy, 1, 0) == CUDA_ERROR_INVALID_VALUE);
  REQUIRE(api::cuUserObjectCreate(&handle, nullptr, destroy, 1, 1) == CUDA_SUCCESS);
  CHECK(api::cuUserObjectRelease(handle, 2) == CUDA_ERROR_INVALID_VALUE);
  CHECK(api::cuGraphRetainUserObject(nullptr, handle, 1, 0) == CUDA_ERROR_INVALID_VALUE);
  CHECK(api::cuUserObjectRelease(handle, 1) == CUDA_SUCCESS);
}

}  // namespace gpupool::guest
