// Launches: the most frequent message by far. No allocation; one look-up a handle.
#include "hostd/worker/manual/launch.hpp"

#include <cstring>

#include "hostd/worker/launch_crew.hpp"
#include "hostd/worker/manual/function.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

// An event's handle at the start of an attribute's value becomes the event.
CUresult put_event(Worker& worker, const wire::LaunchAttribute& attribute, CUevent& event) {
  wire::Handle handle;
  std::memcpy(&handle, attribute.value, sizeof handle);
  const EventEntry* entry = worker.events.find(handle);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  event = entry->event;
  return CUDA_SUCCESS;
}

CUresult read_attribute(Worker& worker, const wire::LaunchAttribute& in, CUlaunchAttribute& out) {
  std::memcpy(&out.id, &in.id, sizeof out.id);  // any number may stand there, also none of the enum's
  std::memset(&out.value, 0, sizeof out.value);
  std::memcpy(&out.value, in.value, sizeof in.value);
  switch (in.id) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
    case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
      return CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
      out.value.deviceUpdatableKernelNode.devNode = nullptr;  // a result
      return CUDA_SUCCESS;
    case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
      return put_event(worker, in, out.value.programmaticEvent.event);
    case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
      return put_event(worker, in, out.value.launchCompletionEvent.event);
    default:
      // Others hold addresses of this process or are no launch attributes.
      throw wire::ProtocolError("launch attribute " + std::to_string(in.id));
  }
}

// Hands a plain launch to the crew, if that brings anything. Whoever waits for an answer or a mark, or
// records a capture, is served by the dispatcher itself.
bool give_to_crew(Worker& worker, const Request& request, const wire::LaunchHeader& header,
                  CUfunction function, std::span<const u8> parameters) {
  if (worker.crew == nullptr || (request.flags & (wire::kReply | wire::kMark)) != 0 ||
      parameters.size() > ReadyLaunch::kMostBytes || request.stream == CU_STREAM_LEGACY ||
      request.stream_context != request.context_index)
    return false;
  if (!worker.crew->wants(request.stream_handle, worker.window.slot(request.ticket + 1), request.ticket + 1))
    return false;
  if (const StreamEntry* stream = worker.streams.find(request.stream_handle);
      stream == nullptr || stream->capturing)
    return false;
  ReadyLaunch& ready = worker.crew->prepare(worker.driver, request.stream_handle);
  ready.function = function;
  ready.stream = request.stream;
  ready.context = request.context;
  std::memcpy(ready.grid, header.grid, sizeof ready.grid);
  std::memcpy(ready.block, header.block, sizeof ready.block);
  ready.shared_bytes = header.shared_bytes;
  ready.bytes = static_cast<u32>(parameters.size());
  if (!parameters.empty()) std::memcpy(ready.parameters, parameters.data(), parameters.size());
  worker.crew->push(request.stream_handle);
  return true;
}

}  // namespace

CUresult read_launch_attributes(Worker& worker, Request& request, u32 count, CUlaunchAttribute* out) {
  for (u32 i = 0; i < count; ++i) {
    const CUresult result = read_attribute(worker, request.in.get<wire::LaunchAttribute>(), out[i]);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

CUlaunchConfig launch_config(const wire::LaunchHeader& header, CUstream stream, CUlaunchAttribute* attributes,
                             u32 count) {
  CUlaunchConfig config{};
  config.gridDimX = header.grid[0];
  config.gridDimY = header.grid[1];
  config.gridDimZ = header.grid[2];
  config.blockDimX = header.block[0];
  config.blockDimY = header.block[1];
  config.blockDimZ = header.block[2];
  config.sharedMemBytes = header.shared_bytes;
  config.hStream = stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return config;
}

// LaunchHeader, LaunchAttribute[attribute_count], packed parameters (wire/cpp/launch_message.hpp).
CUresult handle_cuLaunchKernel(Worker& worker, Request& request) {
  const auto header = request.in.get<wire::LaunchHeader>();
  if (header.attribute_count > wire::kMaxLaunchAttributes)
    throw wire::ProtocolError("too many launch attributes");
  if (!request.stream_handle) throw wire::ProtocolError("a launch without a stream");
  FunctionEntry* entry = worker.functions.find(header.function);
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  CUlaunchAttribute attributes[wire::kMaxLaunchAttributes + 1];
  u32 count = header.attribute_count;
  if (count != 0) {
    const CUresult result = read_launch_attributes(worker, request, count, attributes);
    if (result != CUDA_SUCCESS) return result;
  }
  const std::span<const u8> parameters = request.in.get_bytes(wire::kMaxParameterBytes);
  request.in.finish();
  // The driver reads as many bytes as the function takes, whatever we say.
  if (!entry->described || parameters.size() != entry->parameter_bytes)
    throw wire::ProtocolError("launch with " + std::to_string(parameters.size()) +
                              " parameter bytes, the function takes " +
                              std::to_string(entry->parameter_bytes));
  // Tensor maps need 64-byte alignment inside the buffer; give the buffer more than any parameter can ask
  // for.
  alignas(128) u8 buffer[wire::kMaxParameterBytes];
  if (!parameters.empty()) std::memcpy(buffer, parameters.data(), parameters.size());
  size_t bytes = parameters.size();
  void* extra[] = {CU_LAUNCH_PARAM_BUFFER_POINTER, buffer, CU_LAUNCH_PARAM_BUFFER_SIZE, &bytes,
                   CU_LAUNCH_PARAM_END};
  void** const extra_or_none = bytes == 0 ? nullptr : extra;
  if ((header.flags & wire::kLaunchCooperative) != 0) {
    std::memset(&attributes[count], 0, sizeof attributes[count]);
    attributes[count].id = CU_LAUNCH_ATTRIBUTE_COOPERATIVE;
    attributes[count].value.cooperative = 1;
    ++count;
  }
  ++worker.tally.launches;
  // On a stream of another context than the current one the driver picks the kernel's function itself.
  CUfunction function = entry->function;
  if (request.stream_context == request.context_index) {
    const CUresult result = in_context(worker, *entry, request.context_index, function);
    if (result != CUDA_SUCCESS) return result;
  }
  if (count == 0 && give_to_crew(worker, request, header, function, parameters)) return CUDA_SUCCESS;
  // What was given to the crew comes first: a launch that the crew does not take may follow one that it did.
  if (worker.crew != nullptr && worker.crew->active()) worker.crew->settle(request.stream_handle);
  if (count == 0)
    return worker.driver.cuLaunchKernel(function, header.grid[0], header.grid[1], header.grid[2],
                                        header.block[0], header.block[1], header.block[2],
                                        header.shared_bytes, request.stream, nullptr, extra_or_none);
  const CUlaunchConfig config = launch_config(header, request.stream, attributes, count);
  const CUresult result = worker.driver.cuLaunchKernelEx(&config, function, nullptr, extra_or_none);
  for (u32 i = 0; i < count && result == CUDA_SUCCESS; ++i)
    if (attributes[i].id == CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE)
      request.out->put(attributes[i].value.deviceUpdatableKernelNode.devNode);
  return result;
}

}  // namespace gpupool::worker
