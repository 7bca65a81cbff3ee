#include "hostd/worker/manual/function.hpp"

#include <algorithm>

#include "wire/cpp/launch_message.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

constexpr i32 kUnknownAttribute = static_cast<i32>(0x8000'0000);

struct Parameter {
  u32 offset;
  u32 size;
};

constexpr u64 kDescriptionRest = 256;  // of a description, without its parameters: no more than that

// What the client's place for the answer still takes.
u64 room_left(const Request& request) {
  const u64 room = (request.flags & wire::kAnswerInBulk) != 0 ? request.bulk_size : u64{wire::kReplyBytes};
  const u64 used = request.out->bytes().size();
  return room > used ? room - used : 0;
}

// The parameters' places, and the size of the buffer that holds them all.
CUresult read_layout(Worker& worker, const FunctionEntry& entry, std::vector<Parameter>& parameters,
                     u32& bytes) {
  bytes = 0;
  for (u64 i = 0;; ++i) {
    size_t offset = 0;
    size_t size = 0;
    const CUresult result = entry.kernel
                                ? worker.driver.cuKernelGetParamInfo(
                                      reinterpret_cast<CUkernel>(entry.function), i, &offset, &size)
                                : worker.driver.cuFuncGetParamInfo(entry.function, i, &offset, &size);
    if (result == CUDA_ERROR_INVALID_VALUE) return CUDA_SUCCESS;  // past the last one
    if (result != CUDA_SUCCESS) return result;
    if (i == wire::kMaxParameters || offset + size > wire::kMaxParameterBytes)
      return CUDA_ERROR_INVALID_IMAGE;
    parameters.push_back({static_cast<u32>(offset), static_cast<u32>(size)});
    bytes = std::max(bytes, static_cast<u32>(offset + size));
  }
}

// All attributes of a function in the current context, or of a kernel on a device. The first failure of one
// that every driver knows is a failure; newer ones may be unknown.
CUresult read_attributes(Worker& worker, const FunctionEntry& entry, i32 device,
                         std::array<i32, CU_FUNC_ATTRIBUTE_MAX>& values) {
  for (int i = 0; i < CU_FUNC_ATTRIBUTE_MAX; ++i) {
    const auto attribute = static_cast<CUfunction_attribute>(i);
    int value = 0;
    const CUresult result =
        entry.kernel ? worker.driver.cuKernelGetAttribute(&value, attribute,
                                                          reinterpret_cast<CUkernel>(entry.function),
                                                          worker.devices[static_cast<u32>(device)])
                     : worker.driver.cuFuncGetAttribute(&value, attribute, entry.function);
    if (result != CUDA_SUCCESS && result != CUDA_ERROR_INVALID_VALUE) return result;
    values[static_cast<u32>(i)] = result == CUDA_SUCCESS ? value : kUnknownAttribute;
  }
  return CUDA_SUCCESS;
}

void check_device(const Worker& worker, i32 device) {
  if (device >= 0 && static_cast<u64>(device) >= worker.devices.size())
    throw wire::ProtocolError("device ordinal out of range");
}

// Arguments that the setters share.
struct Setting {
  FunctionEntry* entry;
  i32 device;
};

Setting read_setting(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto device = request.in.get<i32>();
  check_device(worker, device);
  if (device < 0) throw wire::ProtocolError("no device given");
  return {worker.functions.find(handle), device};
}

}  // namespace

void put_function(Worker& worker, wire::Handle handle, CUfunction function, bool kernel) {
  FunctionEntry entry;
  entry.function = function;
  entry.kernel = kernel;
  worker.functions.put(handle, entry);
}

void drop_functions(Worker& worker, const std::vector<wire::Handle>& functions) {
  for (const wire::Handle handle : functions) worker.functions.take(handle);
}

CUresult resolve_kernel(Worker& worker, FunctionEntry& entry, u32 context) {
  const CUresult result =
      worker.driver.cuKernelGetFunction(&entry.resolved, reinterpret_cast<CUkernel>(entry.function));
  entry.resolved_context = result == CUDA_SUCCESS ? context : 0;
  return result;
}

void write_description(Worker& worker, Request& request, FunctionEntry& entry, i32 device) {
  wire::Writer& out = *request.out;
  std::vector<Parameter> parameters;
  u32 bytes = 0;
  CUresult result = read_layout(worker, entry, parameters, bytes);
  if (result == CUDA_SUCCESS) {
    entry.parameter_bytes = bytes;
    entry.described = true;
    if (parameters.size() * sizeof(Parameter) + kDescriptionRest > room_left(request))
      result = CUDA_ERROR_NOT_READY;
  }
  // A kernel's attributes can be known where its parameters cannot: without a context (measured on driver
  // 580).
  out.put(static_cast<i32>(result));
  if (result == CUDA_SUCCESS) out.put_array(parameters.data(), parameters.size());
  std::array<i32, CU_FUNC_ATTRIBUTE_MAX> values{};
  result = device >= 0 ? read_attributes(worker, entry, device, values) : CUDA_SUCCESS;
  out.put(static_cast<i32>(result));
  if (device >= 0 && result == CUDA_SUCCESS) out.put_array(values.data(), values.size());
}

// wire::Handle function, i32 device (negative: parameters only) -> description.
CUresult handle_function_describe(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto device = request.in.get<i32>();
  request.in.finish();
  check_device(worker, device);
  FunctionEntry* entry = worker.functions.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  write_description(worker, request, *entry, device);
  return CUDA_SUCCESS;
}

// i32 device, wire::Handle functions[] -> (u32 1, description)[], u32 0.
CUresult handle_functions_describe(Worker& worker, Request& request) {
  const auto device = request.in.get<i32>();
  const std::vector<wire::Handle> handles = request.in.get_array<wire::Handle>(wire::kMaxDescribed);
  request.in.finish();
  check_device(worker, device);
  for (const wire::Handle handle : handles) {
    if (room_left(request) < 2 * kDescriptionRest) break;  // with the marks around it
    request.out->put<u32>(1);
    if (FunctionEntry* entry = worker.functions.find(handle); entry != nullptr) {
      write_description(worker, request, *entry, device);
    } else {
      request.out->put(static_cast<i32>(CUDA_ERROR_INVALID_HANDLE));
      request.out->put(static_cast<i32>(CUDA_ERROR_INVALID_HANDLE));
    }
  }
  request.out->put<u32>(0);
  return CUDA_SUCCESS;
}

// wire::Handle function, i32 device, u32 attribute, i32 value -> i32 values[], all attributes as they now
// are.
CUresult handle_cuFuncSetAttribute(Worker& worker, Request& request) {
  const Setting setting = read_setting(worker, request);
  const auto attribute = request.in.get_enum<u32>(CU_FUNC_ATTRIBUTE_MAX - 1);
  const auto value = request.in.get<i32>();
  request.in.finish();
  if (setting.entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  FunctionEntry resolved{};
  CUresult result = in_context(worker, *setting.entry, request.context_index, resolved.function);
  if (result == CUDA_SUCCESS)
    result = worker.driver.cuFuncSetAttribute(resolved.function, static_cast<CUfunction_attribute>(attribute),
                                              value);
  std::array<i32, CU_FUNC_ATTRIBUTE_MAX> values{};
  if (result == CUDA_SUCCESS) result = read_attributes(worker, resolved, setting.device, values);
  if (result == CUDA_SUCCESS) request.out->put_array(values.data(), values.size());
  return result;
}

// As cuFuncSetAttribute, for a kernel on a device.
CUresult handle_cuKernelSetAttribute(Worker& worker, Request& request) {
  const Setting setting = read_setting(worker, request);
  const auto attribute = request.in.get_enum<u32>(CU_FUNC_ATTRIBUTE_MAX - 1);
  const auto value = request.in.get<i32>();
  request.in.finish();
  if (setting.entry == nullptr || !setting.entry->kernel) return CUDA_ERROR_INVALID_HANDLE;
  CUresult result = worker.driver.cuKernelSetAttribute(static_cast<CUfunction_attribute>(attribute), value,
                                                       reinterpret_cast<CUkernel>(setting.entry->function),
                                                       worker.devices[static_cast<u32>(setting.device)]);
  std::array<i32, CU_FUNC_ATTRIBUTE_MAX> values{};
  if (result == CUDA_SUCCESS) result = read_attributes(worker, *setting.entry, setting.device, values);
  if (result == CUDA_SUCCESS) request.out->put_array(values.data(), values.size());
  return result;
}

// wire::Handle function, u32 config.
CUresult handle_cuFuncSetCacheConfig(Worker& worker, Request& request) {
  FunctionEntry* entry = worker.functions.find(request.in.get<wire::Handle>());
  const auto config = request.in.get_enum<u32>(CU_FUNC_CACHE_PREFER_EQUAL);
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUfunction function = nullptr;
  const CUresult result = in_context(worker, *entry, request.context_index, function);
  if (result != CUDA_SUCCESS) return result;
  return worker.driver.cuFuncSetCacheConfig(function, static_cast<CUfunc_cache>(config));
}

// wire::Handle kernel, i32 device, u32 config.
CUresult handle_cuKernelSetCacheConfig(Worker& worker, Request& request) {
  const Setting setting = read_setting(worker, request);
  const auto config = request.in.get_enum<u32>(CU_FUNC_CACHE_PREFER_EQUAL);
  request.in.finish();
  if (setting.entry == nullptr || !setting.entry->kernel) return CUDA_ERROR_INVALID_HANDLE;
  return worker.driver.cuKernelSetCacheConfig(reinterpret_cast<CUkernel>(setting.entry->function),
                                              static_cast<CUfunc_cache>(config),
                                              worker.devices[static_cast<u32>(setting.device)]);
}

}  // namespace gpupool::worker
