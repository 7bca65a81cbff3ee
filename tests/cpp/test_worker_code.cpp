// What a hostile or broken client can send to the handlers of images, functions and launches: the driver must
// never be called with something unchecked, and a message that no honest client sends ends the session.
#include <doctest/doctest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "hostd/worker/dispatcher.hpp"
#include "wire/cpp/image.hpp"
#include "wire/cpp/jit_options.hpp"
#include "wire/cpp/launch_message.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

using wire::Handle;
using wire::HandleKind;
using wire::ProtocolError;

// A driver with one kernel of 12 parameter bytes, which remembers what it was called with.
struct Seen {
  int launches = 0;
  std::vector<u8> parameters;
  CUfunction function = nullptr;
  u32 attributes = 0;
  std::vector<u8> image;
  int loads = 0;
} g_seen;

const auto kFunction = reinterpret_cast<CUfunction>(u64{0xf000});
const auto kStream = reinterpret_cast<CUstream>(u64{0x5000});

void remember(CUfunction function, void** extra) {
  ++g_seen.launches;
  g_seen.function = function;
  g_seen.parameters.clear();
  if (extra == nullptr) return;
  REQUIRE(extra[0] == CU_LAUNCH_PARAM_BUFFER_POINTER);
  REQUIRE(reinterpret_cast<u64>(extra[1]) % 64 == 0);
  const auto* bytes = static_cast<const u8*>(extra[1]);
  g_seen.parameters.assign(bytes, bytes + *static_cast<const size_t*>(extra[3]));
}

CUresult launch(CUfunction function, unsigned int, unsigned int, unsigned int, unsigned int, unsigned int,
                unsigned int, unsigned int, CUstream, void**, void** extra) {
  remember(function, extra);
  return CUDA_SUCCESS;
}

CUresult launch_ex(const CUlaunchConfig* config, CUfunction function, void**, void** extra) {
  remember(function, extra);
  g_seen.attributes = config->numAttrs;
  return CUDA_SUCCESS;
}

CUresult parameter_info(CUfunction, size_t index, size_t* offset, size_t* size) {
  if (index > 1) return CUDA_ERROR_INVALID_VALUE;
  *offset = index * 8;
  *size = index == 0 ? 8 : 4;
  return CUDA_SUCCESS;
}

CUresult attribute(int* value, CUfunction_attribute which, CUfunction) {
  *value = which;
  return CUDA_SUCCESS;
}

CUresult get_function(CUfunction* function, CUmodule, const char* name) {
  if (std::strcmp(name, "kernel") != 0) return CUDA_ERROR_NOT_FOUND;
  *function = kFunction;
  return CUDA_SUCCESS;
}

CUresult load(CUmodule* module, const void* image, unsigned int, CUjit_option*, void**) {
  ++g_seen.loads;
  const wire::ImageExtent extent = wire::measure_image(image, wire::kMaxImageBytes);
  const auto* bytes = static_cast<const u8*>(image);
  g_seen.image.assign(bytes, bytes + extent.bytes);
  *module = reinterpret_cast<CUmodule>(u64{0xa000});
  return CUDA_SUCCESS;
}

CUresult unload(CUmodule) {
  return CUDA_SUCCESS;
}
CUresult set_current(CUcontext) {
  return CUDA_SUCCESS;
}

// A worker with a window, and slots that a client would have published.
class Session {
 public:
  Session() {
    g_seen = {};
    worker.window = {static_cast<u8*>(mmap(nullptr, wire::kWindowMinBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)),
                     wire::kWindowMinBytes};
    worker.driver.cuLaunchKernel = &launch;
    worker.driver.cuLaunchKernelEx = &launch_ex;
    worker.driver.cuFuncGetParamInfo = &parameter_info;
    worker.driver.cuFuncGetAttribute = &attribute;
    worker.driver.cuModuleGetFunction = &get_function;
    worker.driver.cuModuleLoadDataEx = &load;
    worker.driver.cuModuleUnload = &unload;
    worker.driver.cuCtxSetCurrent = &set_current;
    worker.devices = {0};
    worker.streams.put(stream, StreamEntry{.stream = kStream});
  }
  ~Session() { munmap(worker.window.base, worker.window.size); }
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Executes a message as the dispatcher does and returns its status; the answer is in `box()`.
  CUresult call(wire::Function function, const wire::Writer& message, u16 flags = 0, u64 bulk_bytes = 0) {
    wire::Slot slot{};
    slot.function = static_cast<u16>(function);
    slot.flags = flags | wire::kReply;
    if (function == wire::Function::cuLaunchKernel) slot.stream = stream;
    slot.bulk_offset = bulk_bytes == 0 ? 0 : wire::kStagingOffset;
    slot.bulk_size = bulk_bytes;
    REQUIRE(message.bytes().size() <= wire::kInlineBytes);
    slot.inline_size = static_cast<u32>(message.bytes().size());
    if (slot.inline_size != 0) std::memcpy(slot.payload, message.bytes().data(), slot.inline_size);
    dispatcher.execute(slot, ticket_++);
    return static_cast<CUresult>(box().status);
  }
  wire::ReplyBox& box() { return worker.window.reply(0); }
  u8* bulk() { return worker.at(wire::kStagingOffset); }

  // The result that a look-up or load answers inside its message.
  CUresult inner() {
    i32 result = 0;
    std::memcpy(&result, box().payload, sizeof result);
    return static_cast<CUresult>(result);
  }

  Worker worker;
  Dispatcher dispatcher{worker};
  const Handle stream = Handle::make(HandleKind::stream, 1, 1);
  const Handle module = Handle::make(HandleKind::module, 1, 1);
  const Handle function = Handle::make(HandleKind::function, 1, 1);

 private:
  u64 ticket_ = 0;
};

// A module in the window: the parts' sizes, then the parts, each at a multiple of 64.
CUresult load_image(Session& session, const std::vector<u64>& sizes, const std::vector<u8>& bytes,
                    i64 more = 0) {
  wire::Writer message;
  message.put(session.module);
  message.put<u64>(0);  // options
  message.put<u64>(0);  // their values
  message.put<u32>(0);
  message.put<u32>(0);
  message.put<u32>(static_cast<u32>(sizes.size()));
  const std::span raw = std::as_bytes(std::span(sizes));
  std::copy(raw.begin(), raw.end(), reinterpret_cast<std::byte*>(session.bulk()));
  std::copy(bytes.begin(), bytes.end(), session.bulk() + 64);
  const u64 total = 64 + (bytes.size() + 63) / 64 * 64 + static_cast<u64>(more);
  return session.call(wire::Function::cuModuleLoadDataEx, message, wire::kBulkIn, total);
}

std::vector<u8> text(const char* content) {
  return {content, content + std::strlen(content) + 1};
}

CUresult look_up(Session& session, const char* name, i32 device = 0) {
  wire::Writer message;
  message.put(session.module);
  message.put(session.function);
  message.put(device);
  message.put_array(name, std::strlen(name));
  return session.call(wire::Function::cuModuleGetFunction, message);
}

wire::Writer launch_message(const Session& session, u64 parameter_bytes, u16 attributes = 0,
                            u32 attribute_id = 4) {
  wire::Writer message;
  message.put(wire::LaunchHeader{session.function, {1, 1, 1}, {1, 1, 1}, 0, attributes, 0});
  for (u16 i = 0; i < attributes; ++i) message.put(wire::LaunchAttribute{attribute_id, {}});
  std::vector<u8> parameters(parameter_bytes);
  for (u64 i = 0; i < parameter_bytes; ++i) parameters[i] = static_cast<u8>(i);
  message.put_array(parameters.data(), parameters.size());
  return message;
}

}  // namespace

TEST_CASE("an image reaches the driver as it was sent, with zeroes behind it") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  REQUIRE(load_image(session, {image.size()}, image) == CUDA_SUCCESS);
  CHECK(session.inner() == CUDA_SUCCESS);
  CHECK(g_seen.image == image);
}

TEST_CASE("an image that is not what its sizes say is refused") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  // No NUL inside the size that is given: the driver would read on.
  REQUIRE(load_image(session, {image.size() - 1}, image) == CUDA_SUCCESS);
  CHECK(session.inner() == CUDA_ERROR_INVALID_IMAGE);
  std::vector<u8> fatbin(64);
  const wire::FatbinHeader header{wire::kFatbinMagic, 1, 16, 49};
  std::memcpy(fatbin.data(), &header, sizeof header);
  REQUIRE(load_image(session, {fatbin.size()}, fatbin) == CUDA_SUCCESS);
  CHECK(session.inner() == CUDA_ERROR_INVALID_IMAGE);
  // Only fatbins have more than one part.
  std::vector<u8> two(128, ' ');
  two[10] = two[74] = 0;
  REQUIRE(load_image(session, {11, 11}, two) == CUDA_SUCCESS);
  CHECK(session.inner() == CUDA_ERROR_INVALID_IMAGE);
  CHECK(g_seen.loads == 0);
}

TEST_CASE("image sizes that contradict their bulk piece end the session") {
  const std::vector<u8> image = text(".version 8.0\n");
  const std::vector<std::vector<u64>> wrong = {
      {}, {0}, {65}, {~0ull}, {~0ull - 63}, {wire::kMaxImageBytes + 1}, {1, ~0ull - 63}, {image.size(), 1}};
  for (const std::vector<u64>& sizes : wrong) {
    Session session;
    CHECK_THROWS_AS(load_image(session, sizes, image), ProtocolError);
  }
  Session session;
  CHECK_THROWS_AS(load_image(session, {image.size()}, image, 1), ProtocolError);
  CHECK_THROWS_AS(load_image(session, {image.size()}, image, -64), ProtocolError);
  CHECK_THROWS_AS(load_image(session, std::vector<u64>(wire::kMaxImageParts + 1, 64), image), ProtocolError);
  CHECK(g_seen.loads == 0);
}

TEST_CASE("compiler options that hold addresses end the session") {
  for (const u16 option : {3, 4, 17, 18, 25, 27, 35, 60000}) {
    Session session;
    wire::Writer message;
    message.put(session.module);
    const u32 value = 0;
    message.put_array(&option, 1);
    message.put_array(&value, 1);
    message.put<u32>(0);
    message.put<u32>(0);
    message.put<u32>(1);
    CHECK_THROWS_AS(session.call(wire::Function::cuModuleLoadDataEx, message, wire::kBulkIn, 128),
                    ProtocolError);
    wire::Writer log;
    log.put(session.module);
    log.put<u64>(0);
    log.put<u64>(0);
    log.put<u32>(wire::kMaxJitLogBytes + 1);
    log.put<u32>(0);
    log.put<u32>(1);
    CHECK_THROWS_AS(session.call(wire::Function::cuModuleLoadDataEx, log, wire::kBulkIn, 128), ProtocolError);
  }
}

TEST_CASE("a launch carries exactly the parameters that the function takes") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  REQUIRE(load_image(session, {image.size()}, image) == CUDA_SUCCESS);
  REQUIRE(look_up(session, "kernel") == CUDA_SUCCESS);
  REQUIRE(session.inner() == CUDA_SUCCESS);
  REQUIRE(session.call(wire::Function::cuLaunchKernel, launch_message(session, 12)) == CUDA_SUCCESS);
  CHECK(g_seen.function == kFunction);
  CHECK(g_seen.parameters == std::vector<u8>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
  for (const u64 wrong : {u64{0}, u64{8}, u64{11}, u64{13}, u64{100}})
    CHECK_THROWS_AS(session.call(wire::Function::cuLaunchKernel, launch_message(session, wrong)),
                    ProtocolError);
  CHECK(g_seen.launches == 1);
}

TEST_CASE("launch attributes are counted and known") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  load_image(session, {image.size()}, image);
  look_up(session, "kernel");
  REQUIRE(session.call(wire::Function::cuLaunchKernel, launch_message(session, 12, 2)) == CUDA_SUCCESS);
  CHECK(g_seen.attributes == 2);
  for (const u32 id : {0u, 3u, 15u, 17u, 1000u})  // no launch attributes
    CHECK_THROWS_AS(session.call(wire::Function::cuLaunchKernel, launch_message(session, 12, 1, id)),
                    ProtocolError);
  // An event that does not exist.
  CHECK(session.call(wire::Function::cuLaunchKernel, launch_message(session, 12, 1, 7)) ==
        CUDA_ERROR_INVALID_HANDLE);
  wire::Writer lies;
  lies.put(wire::LaunchHeader{session.function, {1, 1, 1}, {1, 1, 1}, 0, 33, 0});
  CHECK_THROWS_AS(session.call(wire::Function::cuLaunchKernel, lies), ProtocolError);
  CHECK(g_seen.launches == 1);
}

TEST_CASE("functions end with their module") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  load_image(session, {image.size()}, image);
  REQUIRE(look_up(session, "missing") == CUDA_SUCCESS);
  CHECK(session.inner() == CUDA_ERROR_NOT_FOUND);
  look_up(session, "kernel");
  CHECK_THROWS_AS(look_up(session, "kernel"), ProtocolError);     // the handle is in use
  CHECK_THROWS_AS(look_up(session, "kernel", 1), ProtocolError);  // no such device
  wire::Writer message;
  message.put(session.module);
  REQUIRE(session.call(wire::Function::cuModuleUnload, message) == CUDA_SUCCESS);
  CHECK(session.call(wire::Function::cuModuleUnload, message) == CUDA_ERROR_INVALID_HANDLE);
  CHECK(session.call(wire::Function::cuLaunchKernel, launch_message(session, 12)) ==
        CUDA_ERROR_INVALID_HANDLE);
  CHECK(g_seen.launches == 0);
}

namespace {

CUresult describe_together(Session& session, const std::vector<Handle>& handles, u64 room, i32 device = 0) {
  wire::Writer message;
  message.put(device);
  message.put_array(handles.data(), handles.size());
  const bool bulk = room != 0;
  return session.call(wire::Function::functions_describe, message,
                      bulk ? wire::kBulkOut | wire::kAnswerInBulk : 0, room);
}

// The first results of the descriptions that an answer has; each here has two parameters and one device.
std::vector<CUresult> described(const u8* answer, u64 bytes) {
  wire::Reader reader({answer, bytes});
  std::vector<CUresult> results;
  while (reader.get<u32>() != 0) {
    results.push_back(static_cast<CUresult>(reader.get<i32>()));
    if (results.back() == CUDA_SUCCESS) reader.get_array<u64>(2);
    if (reader.get<i32>() == CUDA_SUCCESS) reader.get_array<i32>(CU_FUNC_ATTRIBUTE_MAX);
  }
  reader.finish();
  return results;
}

}  // namespace

TEST_CASE("functions are described together as far as the answer has room") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  REQUIRE(load_image(session, {image.size()}, image) == CUDA_SUCCESS);
  REQUIRE(look_up(session, "kernel") == CUDA_SUCCESS);
  const Handle unknown = Handle::make(HandleKind::function, 1, 9);
  REQUIRE(describe_together(session, {session.function, unknown, session.function}, 0) == CUDA_SUCCESS);
  CHECK(described(session.box().payload, session.box().size) ==
        std::vector{CUDA_SUCCESS, CUDA_ERROR_INVALID_HANDLE, CUDA_SUCCESS});
  const std::vector<Handle> many(wire::kMaxDescribed, session.function);
  REQUIRE(describe_together(session, many, wire::kDescribedBytes) == CUDA_SUCCESS);
  CHECK(described(session.bulk(), session.box().size).size() == many.size());
  REQUIRE(describe_together(session, many, 1024) == CUDA_SUCCESS);
  const u64 some = described(session.bulk(), session.box().size).size();
  CHECK(some >= 2);
  CHECK(some < many.size());
  CHECK_THROWS_AS(describe_together(session, {session.function}, 0, 1), ProtocolError);
  wire::Writer lie;
  lie.put<i32>(0);
  lie.put<u64>(wire::kMaxDescribed + 1);
  CHECK_THROWS_AS(session.call(wire::Function::functions_describe, lie), ProtocolError);
}

TEST_CASE("names of functions are answered where they fit, and never more room is taken than said") {
  Session session;
  const std::vector<u8> image = text(".version 8.0\n");
  REQUIRE(load_image(session, {image.size()}, image) == CUDA_SUCCESS);
  session.worker.driver.cuModuleGetFunctionCount = [](unsigned int* count, CUmodule) {
    *count = 5;
    return CUDA_SUCCESS;
  };
  session.worker.driver.cuModuleEnumerateFunctions = [](CUfunction*, unsigned int, CUmodule) {
    return CUDA_SUCCESS;
  };
  session.worker.driver.cuFuncGetName = [](const char** name, CUfunction) {
    *name = "work";
    return CUDA_SUCCESS;
  };
  const auto ask = [&session](Handle owner, u64 room) {
    wire::Writer message;
    message.put(owner);
    message.put(room);
    return session.call(wire::Function::function_names, message);
  };
  REQUIRE(ask(session.module, 25) == CUDA_SUCCESS);
  CHECK(session.inner() == CUDA_SUCCESS);
  CHECK(session.box().size == 8 + 8 + 25);
  for (const u64 room : {24, 9, 0}) {
    REQUIRE(ask(session.module, room) == CUDA_SUCCESS);
    CHECK(session.inner() == CUDA_ERROR_NOT_READY);
  }
  for (const Handle wrong : {session.function, Handle::make(HandleKind::library, 1, 1), Handle{}}) {
    REQUIRE(ask(wrong, 25) == CUDA_SUCCESS);
    CHECK(session.inner() == CUDA_ERROR_INVALID_HANDLE);
  }
  CHECK_THROWS_AS(ask(session.module, ~0ull), ProtocolError);
}

TEST_CASE("tensor map arrays fit their rank") {
  Session session;
  const auto message = [](u32 rank, u64 dimensions, u64 strides) {
    wire::Writer writer;
    const u64 values[8] = {};
    writer.put(rank);
    writer.put<u64>(0);
    writer.put_array(values, dimensions);
    writer.put_array(values, strides);
    for (int i = 0; i < 4; ++i) writer.put_array(reinterpret_cast<const u32*>(values), 0);
    writer.put_array(reinterpret_cast<const u32*>(values), 0);
    return writer;
  };
  for (const auto& wrong :
       {message(0, 0, 0), message(6, 5, 5), message(2, 1, 1), message(2, 2, 2), message(2, 2, 1)})
    CHECK_THROWS_AS(session.call(wire::Function::cuTensorMapEncodeTiled, wrong), ProtocolError);
}

}  // namespace gpupool::worker
