#include "guest/runtime/manual/user_object.hpp"

#include <limits>

#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/host_function.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

Slab<UserObject> g_user_objects;

constexpr unsigned kMostReferences =
    std::numeric_limits<int>::max();  // cuda.h: counts above INT_MAX are invalid

bool valid_count(unsigned count) {
  return count != 0 && count <= kMostReferences;
}

}  // namespace

void retain(UserObject& object, u64 count) {
  object.references.fetch_add(count, std::memory_order_relaxed);
}

bool release(UserObject& object, u64 count) {
  u64 before = object.references.load(std::memory_order_relaxed);
  do {
    if (before < count) return false;
  } while (!object.references.compare_exchange_weak(before, before - count, std::memory_order_acq_rel));
  if (before != count) return true;
  const CUhostFn destroy = object.destroy;
  void* pointer = object.pointer;
  g_user_objects.destroy(&object);
  destroy(pointer);
  return true;
}

UserReference::UserReference(const UserReference& other) : object_(other.object_), count_(other.count_) {
  retain(*object_, count_);
}

UserReference::~UserReference() {
  if (count_ != 0) release(*object_, count_);
}

bool UserReference::drop(u32 count) {
  if (count > count_) return false;
  count_ -= count;
  return true;
}

namespace api {

CUresult cuUserObjectCreate(CUuserObject* out, void* pointer, CUhostFn destroy, unsigned int references,
                            unsigned int flags) {
  // cuda.h: the flag that says "no synchronisation with the destructor" must be given.
  if (out == nullptr || destroy == nullptr || !valid_count(references) ||
      flags != CU_USER_OBJECT_NO_DESTRUCTOR_SYNC)
    return CUDA_ERROR_INVALID_VALUE;
  UserObject* object = g_user_objects.create();
  if (object == nullptr) return CUDA_ERROR_OUT_OF_MEMORY;
  object->pointer = pointer;
  object->destroy = destroy;
  object->references.store(references, std::memory_order_relaxed);
  *out = reinterpret_cast<CUuserObject>(object);
  return CUDA_SUCCESS;
}

CUresult cuUserObjectRetain(CUuserObject handle, unsigned int count) {
  UserObject* object = g_user_objects.find(handle);
  if (object == nullptr || !valid_count(count)) return CUDA_ERROR_INVALID_VALUE;
  retain(*object, count);
  return CUDA_SUCCESS;
}

CUresult cuUserObjectRelease(CUuserObject handle, unsigned int count) {
  UserObject* object = g_user_objects.find(handle);
  if (object == nullptr || !valid_count(count)) return CUDA_ERROR_INVALID_VALUE;
  return release(*object, count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphRetainUserObject(CUgraph graph, CUuserObject handle, unsigned int count, unsigned int flags) {
  UserObject* object = g_user_objects.find(handle);
  if (object == nullptr || !valid_count(count) ||
      (flags & ~static_cast<unsigned>(CU_GRAPH_USER_OBJECT_MOVE)) != 0)
    return CUDA_ERROR_INVALID_VALUE;
  const bool known = with_objects(bits(graph), [&](std::vector<UserReference>& objects) {
    if ((flags & CU_GRAPH_USER_OBJECT_MOVE) == 0)
      retain(*object, count);  // else the caller's references move
    for (UserReference& reference : objects) {
      if (reference.object() != object) continue;
      reference.add(count);
      return;
    }
    objects.emplace_back(object, count);
  });
  return known ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGraphReleaseUserObject(CUgraph graph, CUuserObject handle, unsigned int count) {
  UserObject* object = g_user_objects.find(handle);
  if (object == nullptr || !valid_count(count)) return CUDA_ERROR_INVALID_VALUE;
  bool dropped = false;
  with_objects(bits(graph), [&](std::vector<UserReference>& objects) {
    for (UserReference& reference : objects)
      if (reference.object() == object) dropped = reference.drop(count);
    std::erase_if(objects, [](const UserReference& reference) { return reference.count() == 0; });
  });
  // Outside of the registry's lock: the destructor may run now.
  return dropped && release(*object, count) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace api
}  // namespace gpupool::guest
