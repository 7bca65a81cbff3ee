#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "guest/runtime/manual/launch.hpp"
#include "wire/cpp/launch_message.hpp"
#include "wire/cpp/reader.hpp"

namespace gpupool::guest {

namespace {

// A pointer, an int, a char, and 128 bytes that need alignment 64, as a kernel with a tensor map has them.
std::unique_ptr<Function> function_with_parameters() {
  auto function = std::make_unique<Function>();
  function->parameters = {{0, 8}, {8, 4}, {12, 1}, {64, 128}};
  function->parameter_bytes = 192;
  return function;
}

// CU_LAUNCH_PARAM_BUFFER_POINTER and _SIZE as a program writes them.
struct Extra {
  std::vector<u8> bytes;
  size_t size;
  void* list[5];
  explicit Extra(u64 count) : bytes(count), size(count) {
    for (u64 i = 0; i < count; ++i) bytes[i] = static_cast<u8>(i + 1);
    list[0] = CU_LAUNCH_PARAM_BUFFER_POINTER;
    list[1] = bytes.data();
    list[2] = CU_LAUNCH_PARAM_BUFFER_SIZE;
    list[3] = &size;
    list[4] = CU_LAUNCH_PARAM_END;
  }
};

}  // namespace

TEST_CASE("parameters go to the places that the driver described") {
  const auto function = function_with_parameters();
  u64 pointer = 0x1122'3344'5566'7788;
  u32 number = 0xaabb'ccdd;
  u8 letter = 0x5a;
  u8 map[128];
  for (u32 i = 0; i < sizeof map; ++i) map[i] = static_cast<u8>(200 - i);
  void* pointers[] = {&pointer, &number, &letter, map};
  ParameterSource source;
  REQUIRE(read_parameters(*function, pointers, nullptr, source) == CUDA_SUCCESS);
  std::vector<u8> out(function->parameter_bytes + 16, 0xee);
  pack_parameters(*function, source, out.data());
  CHECK(std::memcmp(out.data(), &pointer, 8) == 0);
  CHECK(std::memcmp(out.data() + 8, &number, 4) == 0);
  CHECK(out[12] == letter);
  CHECK(out[13] == 0xee);  // padding is left alone
  CHECK(std::memcmp(out.data() + 64, map, 128) == 0);
  for (u64 i = function->parameter_bytes; i < out.size(); ++i) CHECK(out[i] == 0xee);
}

TEST_CASE("a packed buffer is taken as far as it goes") {
  const auto function = function_with_parameters();
  for (const u64 size : {u64{1}, u64{12}, u64{191}, u64{192}}) {
    Extra extra(size);
    ParameterSource source;
    REQUIRE(read_parameters(*function, nullptr, extra.list, source) == CUDA_SUCCESS);
    std::vector<u8> out(function->parameter_bytes + 1, 0xee);
    pack_parameters(*function, source, out.data());
    for (u64 i = 0; i < function->parameter_bytes; ++i)
      CHECK(out[i] == (i < size ? static_cast<u8>(i + 1) : 0));
    CHECK(out[function->parameter_bytes] == 0xee);
  }
}

TEST_CASE("wrong parameters are refused as driver 580 refuses them") {
  const auto function = function_with_parameters();
  const auto none = std::make_unique<Function>();
  ParameterSource source;
  u64 value = 0;
  void* pointers[] = {&value};
  CHECK(read_parameters(*function, nullptr, nullptr, source) == CUDA_ERROR_INVALID_VALUE);
  CHECK(read_parameters(*none, nullptr, nullptr, source) == CUDA_SUCCESS);
  Extra longer(193);
  CHECK(read_parameters(*function, nullptr, longer.list, source) == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
  Extra empty(0);
  CHECK(read_parameters(*function, nullptr, empty.list, source) == CUDA_ERROR_INVALID_VALUE);
  Extra good(192);
  CHECK(read_parameters(*function, pointers, good.list, source) == CUDA_ERROR_INVALID_VALUE);
  good.list[0] = reinterpret_cast<void*>(u64{7});
  CHECK(read_parameters(*function, nullptr, good.list, source) == CUDA_ERROR_INVALID_VALUE);
  Extra one(1);
  CHECK(read_parameters(*none, nullptr, one.list, source) == CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
}

TEST_CASE("launch attributes travel with their values, and what cannot travel is refused") {
  CUlaunchAttribute attributes[3]{};
  attributes[0].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
  attributes[0].value.clusterDim = {2, 3, 4};
  attributes[1].id = CU_LAUNCH_ATTRIBUTE_IGNORE;
  attributes[2].id = CU_LAUNCH_ATTRIBUTE_PRIORITY;
  attributes[2].value.priority = -5;
  LaunchAttributes out;
  REQUIRE(translate_attributes(attributes, 3, out) == CUDA_SUCCESS);
  REQUIRE(out.count == 2);
  const u32 cluster[] = {2, 3, 4};
  CHECK(out.values[0].id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
  CHECK(std::memcmp(out.values[0].value, cluster, sizeof cluster) == 0);
  CHECK(out.values[1].id == CU_LAUNCH_ATTRIBUTE_PRIORITY);

  const auto refused = [](u32 id) {
    CUlaunchAttribute attribute{};
    attribute.id = static_cast<CUlaunchAttributeID>(id);
    LaunchAttributes translated;
    return translate_attributes(&attribute, 1, translated);
  };
  CHECK(refused(CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY) == CUDA_ERROR_INVALID_VALUE);
  CHECK(refused(15) == CUDA_ERROR_INVALID_VALUE);
  CHECK(refused(77) == CUDA_ERROR_INVALID_VALUE);
  CHECK(refused(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT) == CUDA_ERROR_INVALID_HANDLE);  // no such event
  LaunchAttributes nothing;
  CHECK(translate_attributes(nullptr, 1, nothing) == CUDA_ERROR_INVALID_VALUE);
  CHECK(translate_attributes(nullptr, 0, nothing) == CUDA_SUCCESS);
}

TEST_CASE("the place for an updatable node's handle stays here") {
  CUlaunchAttribute attribute{};
  attribute.id = CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE;
  attribute.value.deviceUpdatableKernelNode.deviceUpdatable = 1;
  attribute.value.deviceUpdatableKernelNode.devNode = reinterpret_cast<CUgraphDeviceNode>(0x1234);
  LaunchAttributes out;
  REQUIRE(translate_attributes(&attribute, 1, out) == CUDA_SUCCESS);
  CHECK(out.device_node == &attribute.value.deviceUpdatableKernelNode.devNode);
  const u32 sent[4] = {1, 0, 0, 0};
  CHECK(std::memcmp(out.values[0].value, sent, sizeof sent) == 0);
}

TEST_CASE("a launch message is read back by the worker's reader") {
  wire::Writer writer;
  const wire::LaunchHeader header{
      wire::Handle::make(wire::HandleKind::function, 1, 2), {1, 2, 3}, {4, 5, 6}, 7, 1, 0};
  writer.put(header);
  writer.put(wire::LaunchAttribute{});
  const u8 parameters[5] = {1, 2, 3, 4, 5};
  writer.put_array(parameters, sizeof parameters);
  CHECK(writer.bytes().size() == wire::launch_message_bytes(1, sizeof parameters));
  wire::Reader reader(writer.bytes());
  CHECK(reader.get<wire::LaunchHeader>().function == header.function);
  (void)reader.get<wire::LaunchAttribute>();
  CHECK(reader.get_bytes(5).size() == 5);
  reader.finish();
}

}  // namespace gpupool::guest
