// Kernel launches: the hot path. Everything a launch needs was fetched when its function was looked up, so it
// is checked, packed and written into a ring slot without a lock, an allocation or a system call.
#include "guest/runtime/manual/launch.hpp"

#include <cstdlib>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/capture.hpp"
#include "guest/runtime/manual/event.hpp"
#include "guest/runtime/manual/occupancy.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {

namespace {

bool launch_blocking() {
  static const bool blocking = [] {
    const char* value = std::getenv("CUDA_LAUNCH_BLOCKING");
    return value != nullptr && std::atoi(value) != 0;
  }();
  return blocking;
}

// A launch with everything looked up and checked.
struct Launch {
  wire::LaunchHeader header;
  const LaunchAttributes* attributes = nullptr;  // null: none
  const Function* function = nullptr;
  ParameterSource source;
};

// Writes the message of the launch to `out`, which has room for launch_message_bytes().
void write_message(const Launch& launch, u8* out) {
  std::memcpy(out, &launch.header, sizeof launch.header);
  out += sizeof launch.header;
  const u64 attribute_bytes = launch.header.attribute_count * sizeof(wire::LaunchAttribute);
  if (attribute_bytes != 0) std::memcpy(out, launch.attributes->values, attribute_bytes);
  out += attribute_bytes;
  const u64 bytes = launch.function->parameter_bytes;
  std::memcpy(out, &bytes, sizeof bytes);
  pack_parameters(*launch.function, launch.source, out + sizeof bytes);
}

// Fills and publishes a claimed slot. A launch that records events carries a mark, so that the client sees
// them.
void publish(Session& session, const Launch& launch, const Claim& claim, u16 flags, Stream& stream) {
  const bool records = launch.attributes != nullptr && launch.attributes->event_count != 0;
  const std::shared_ptr<Capture> capture = records ? capture_of(stream) : nullptr;
  if (records && capture == nullptr) flags |= wire::kMark;
  claim.slot->function = static_cast<u16>(wire::Function::cuLaunchKernel);
  claim.slot->flags = flags;
  claim.slot->stream = stream.handle;
  session.publish(claim, &stream);
  for (u32 i = 0; records && i < launch.attributes->event_count; ++i) {
    Event& event = *launch.attributes->events[i];
    if (capture == nullptr) {
      set_recorded(event, stream.handle.index(), claim.ticket + 1);
      continue;
    }
    const std::lock_guard lock(capture_mutex());
    event.capture = capture;
    event.recorded.store(kRecordedInCapture, std::memory_order_release);
  }
}

CUresult no_claim(const Session& session) {
  return session.failed() != CUDA_SUCCESS ? session.failed() : CUDA_ERROR_OUT_OF_MEMORY;  // too many threads
}

// Does not fit a slot: TMA descriptors are 128 bytes each. The message goes to the staging area, staged
// before the ticket is taken, since staging may wait.
CUresult send_staged(Session& session, const Launch& launch, Stream& stream, u64 bytes) {
  const Bulk bulk = session.stage(bytes);
  if (!bulk) return session.failed();
  write_message(launch, bulk.address);
  const Claim claim = session.claim();
  if (claim.slot == nullptr) {
    session.release(bulk, Completion{0, 0});
    return no_claim(session);
  }
  claim.slot->bulk_offset = bulk.offset;
  claim.slot->bulk_size = bytes;
  publish(session, launch, claim, wire::kBulkIn | wire::kPayloadInBulk, stream);
  session.release(bulk, Completion{0, claim.ticket + 1});
  return CUDA_SUCCESS;
}

// A launch that makes a node which kernels can update: its handle is part of the answer.
CUresult send_and_wait(const Launch& launch, Stream& stream) {
  // cuda.h: only in a capture.
  if (!stream.capturing.load(std::memory_order_acquire)) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuLaunchKernel);
  call.on(stream);
  call.put(launch.header);
  for (u32 i = 0; i < launch.header.attribute_count; ++i) call.put(launch.attributes->values[i]);
  std::vector<u8> packed(launch.function->parameter_bytes);
  pack_parameters(*launch.function, launch.source, packed.data());
  call.put_array(packed.data(), packed.size());
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS)
    *launch.attributes->device_node = reinterpret_cast<CUgraphDeviceNode>(call.get<u64>());
  return result;
}

CUresult send(Session& session, const Launch& launch, Stream& stream) {
  if (launch.attributes != nullptr && launch.attributes->device_node != nullptr) [[unlikely]]
    return send_and_wait(launch, stream);
  const u64 bytes =
      wire::launch_message_bytes(launch.header.attribute_count, launch.function->parameter_bytes);
  if (bytes > wire::kInlineBytes) return send_staged(session, launch, stream, bytes);
  // Packed outside the ring first: a fault in the program's memory must not leave a ticket unpublished, for
  // which every other thread would wait.
  alignas(64) u8 message[wire::kInlineBytes];
  write_message(launch, message);
  const Claim claim = session.claim();
  if (claim.slot == nullptr) [[unlikely]]
    return no_claim(session);
  claim.slot->inline_size = static_cast<u32>(bytes);
  std::memcpy(claim.slot->payload, message, bytes);
  publish(session, launch, claim, 0, stream);
  return CUDA_SUCCESS;
}

// Blocks that can run at the same time bound a cooperative grid: the driver refuses larger ones at the
// launch.
CUresult check_cooperative(Function& function, const LaunchShape& shape, int device) {
  const wire::DeviceInfo& info = *device_info(device);
  if (info.attributes[CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH] == 0) return CUDA_ERROR_NOT_SUPPORTED;
  int blocks = 0;
  const u32 threads = shape.block[0] * shape.block[1] * shape.block[2];
  const CUresult result =
      active_blocks(function, device, static_cast<int>(threads), shape.shared_bytes, 0, blocks);
  if (result != CUDA_SUCCESS) return result;
  const u64 room =
      static_cast<u64>(blocks) * static_cast<u32>(info.attributes[CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT]);
  return u64{shape.grid[0]} * shape.grid[1] * shape.grid[2] > room ? CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
                                                                   : CUDA_SUCCESS;
}

CUresult check_cluster(const u32 (&cluster)[3], const LaunchShape& shape, const FunctionOnDevice& facts) {
  for (int i = 0; i < 3; ++i)
    if (cluster[i] == 0 || shape.grid[i] % cluster[i] != 0) return CUDA_ERROR_INVALID_CLUSTER_SIZE;
  // 8 blocks are portable, 16 the most that Hopper forms (CUDA programming guide, "Thread block clusters").
  const bool large = facts.attributes[CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED].load(
                         std::memory_order_relaxed) == 1;
  const u64 blocks = u64{cluster[0]} * cluster[1] * cluster[2];
  return blocks > (large ? 16u : 8u) ? CUDA_ERROR_INVALID_CLUSTER_SIZE : CUDA_SUCCESS;
}

// Values that the driver refuses at once (measured on driver 580).
bool valid_value(u32 id, u32 value) {
  switch (id) {
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      return value <= CU_CLUSTER_SCHEDULING_POLICY_LOAD_BALANCING;
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
      return value <= CU_LAUNCH_MEM_SYNC_DOMAIN_REMOTE;
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      return value <= 100 || value == ~0u;  // CU_SHAREDMEM_CARVEOUT_DEFAULT
    default:
      return true;
  }
}

// Attributes whose legality depends on the launch as a whole.
CUresult check_attributes(const LaunchAttributes& attributes, Function& function, const LaunchShape& shape,
                          const FunctionOnDevice& facts, int device) {
  for (u32 i = 0; i < attributes.count; ++i) {
    const wire::LaunchAttribute& attribute = attributes.values[i];
    u32 words[3];
    std::memcpy(words, attribute.value, sizeof words);
    if (!valid_value(attribute.id, words[0])) return CUDA_ERROR_INVALID_VALUE;
    CUresult result = CUDA_SUCCESS;
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION) result = check_cluster(words, shape, facts);
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE && words[0] != 0)
      result = check_cooperative(function, shape, device);
    if (result != CUDA_SUCCESS) return result;
  }
  return CUDA_SUCCESS;
}

// A launch records this event itself.
CUresult translate_event(CUevent handle, wire::LaunchAttribute& attribute, LaunchAttributes& out) {
  Event* event = find(handle);
  if (event == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (out.event_count == std::size(out.events)) return CUDA_ERROR_INVALID_VALUE;
  std::memcpy(attribute.value, &event->handle, sizeof event->handle);
  out.events[out.event_count++] = event;
  return CUDA_SUCCESS;
}

// The whole of a launch, whichever entry point it came through.
inline CUresult launch(CUfunction handle, const LaunchShape& shape, CUstream stream_handle, void** parameters,
                       void** extra, const LaunchAttributes* attributes, u16 flags) {
  Function* function = find(handle);
  if (function == nullptr) [[unlikely]]
    return CUDA_ERROR_INVALID_HANDLE;
  CUresult error = CUDA_SUCCESS;
  Stream* stream = resolve_stream(stream_handle, error);
  if (stream == nullptr) [[unlikely]]
    return error;
  const Context* context = stream->context;
  if (function->context != nullptr && function->context != context) [[unlikely]]
    return CUDA_ERROR_INVALID_HANDLE;
  const FunctionOnDevice* facts = facts_on(*function, context->device, error);
  if (facts == nullptr) [[unlikely]]
    return error;
  if (!function->described.load(std::memory_order_acquire)) [[unlikely]] {
    if (error = describe_parameters(*function); error != CUDA_SUCCESS) return error;
  }
  if (error = check_shape(shape, *facts, context->device); error != CUDA_SUCCESS) [[unlikely]] {
    invalidate_capture(*stream);  // a capture does not survive a refused launch (measured on driver 580)
    return error;
  }
  if (error = check_legacy(*stream); error != CUDA_SUCCESS) [[unlikely]]
    return error;
  Launch each;
  if (error = read_parameters(*function, parameters, extra, each.source); error != CUDA_SUCCESS) [[unlikely]]
    return error;
  if (attributes != nullptr) {
    error = check_attributes(*attributes, *function, shape, *facts, context->device);
    if (error != CUDA_SUCCESS) return error;
  }
  if ((flags & wire::kLaunchCooperative) != 0) {
    if (error = check_cooperative(*function, shape, context->device); error != CUDA_SUCCESS) return error;
  }
  each.header = {function->handle,
                 {shape.grid[0], shape.grid[1], shape.grid[2]},
                 {shape.block[0], shape.block[1], shape.block[2]},
                 shape.shared_bytes,
                 static_cast<u16>(attributes == nullptr ? 0 : attributes->count),
                 flags};
  each.attributes = attributes;
  each.function = function;
  Session& session = *Session::current();
  error = send(session, each, *stream);
  if (error == CUDA_SUCCESS && launch_blocking() && !stream->capturing.load(std::memory_order_relaxed))
      [[unlikely]]
    return session.synchronize(*stream);
  return error;
}

// More threads than the function can have: for want of registers, or because its code says so (.maxntid).
CUresult too_many_threads(const FunctionOnDevice& facts, const wire::DeviceInfo& info, u64 threads) {
  const auto registers =
      static_cast<u32>(facts.attributes[CU_FUNC_ATTRIBUTE_NUM_REGS].load(std::memory_order_relaxed));
  // A warp's registers come in units of 256 (CUDA occupancy rules since compute capability 3.0).
  const u64 needed = (threads + 31) / 32 * ((u64{registers} * 32 + 255) / 256 * 256);
  const bool too_many =
      needed > static_cast<u32>(info.attributes[CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK]);
  return too_many ? CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES : CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

CUresult read_parameters(const Function& function, void** kernel_parameters, void** extra,
                         ParameterSource& source) {
  if (extra == nullptr) [[likely]] {
    if (kernel_parameters == nullptr && function.parameter_bytes != 0) return CUDA_ERROR_INVALID_VALUE;
    source.pointers = kernel_parameters;
    return CUDA_SUCCESS;
  }
  if (kernel_parameters != nullptr) return CUDA_ERROR_INVALID_VALUE;
  const size_t* bytes = nullptr;
  for (void** entry = extra; *entry != CU_LAUNCH_PARAM_END; entry += 2) {
    if (*entry == CU_LAUNCH_PARAM_BUFFER_POINTER)
      source.buffer = static_cast<const u8*>(entry[1]);
    else if (*entry == CU_LAUNCH_PARAM_BUFFER_SIZE)
      bytes = static_cast<const size_t*>(entry[1]);
    else
      return CUDA_ERROR_INVALID_VALUE;
  }
  source.buffer_bytes = bytes == nullptr ? 0 : *bytes;
  if (source.buffer == nullptr && bytes == nullptr && function.parameter_bytes == 0) return CUDA_SUCCESS;
  if (source.buffer == nullptr || source.buffer_bytes == 0) return CUDA_ERROR_INVALID_VALUE;
  // As the driver answers (measured on driver 580): a short buffer is taken as far as it goes.
  return source.buffer_bytes > function.parameter_bytes ? CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES : CUDA_SUCCESS;
}

CUresult check_shape(const LaunchShape& shape, const FunctionOnDevice& facts, int device) {
  const auto attribute = [&facts](CUfunction_attribute which) {
    return facts.attributes[which].load(std::memory_order_relaxed);
  };
  const wire::DeviceInfo& info = *device_info(device);
  constexpr int kGrid = CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X;
  constexpr int kBlock = CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X;
  for (int i = 0; i < 3; ++i) {
    // Zero wraps around to the largest number, so one comparison finds both.
    if (shape.grid[i] - 1 >= static_cast<u32>(info.attributes[kGrid + i])) return CUDA_ERROR_INVALID_VALUE;
    if (shape.block[i] - 1 >= static_cast<u32>(info.attributes[kBlock + i])) return CUDA_ERROR_INVALID_VALUE;
  }
  const u64 threads = u64{shape.block[0]} * shape.block[1] * shape.block[2];
  if (threads > static_cast<u32>(info.attributes[CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK]))
    return CUDA_ERROR_INVALID_VALUE;
  const i32 most = attribute(CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
  if (most != FunctionOnDevice::kUnknown && threads > static_cast<u32>(most)) [[unlikely]]
    return too_many_threads(facts, info, threads);
  const i32 dynamic = attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
  if (dynamic != FunctionOnDevice::kUnknown && shape.shared_bytes > static_cast<u32>(dynamic))
    return CUDA_ERROR_INVALID_VALUE;
  return CUDA_SUCCESS;
}

CUresult translate_attributes(CUlaunchAttribute* attributes, unsigned int count, LaunchAttributes& out) {
  if (count != 0 && attributes == nullptr) return CUDA_ERROR_INVALID_VALUE;
  for (unsigned int i = 0; i < count; ++i) {
    CUlaunchAttribute& attribute = attributes[i];
    if (out.count == wire::kMaxLaunchAttributes) return CUDA_ERROR_INVALID_VALUE;
    wire::LaunchAttribute& each = out.values[out.count];
    std::memcpy(&each.id, &attribute.id, sizeof each.id);  // a program may pass any number
    std::memcpy(each.value, &attribute.value, sizeof each.value);
    CUresult result = CUDA_SUCCESS;
    switch (each.id) {
      case CU_LAUNCH_ATTRIBUTE_IGNORE:
        continue;
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        if ((attribute.value.clusterDim.x | attribute.value.clusterDim.y | attribute.value.clusterDim.z) == 0)
          continue;  // no cluster (measured on driver 580)
        break;
      case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:  // its address is a device address, valid as it stands
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
      case CU_LAUNCH_ATTRIBUTE_PRIORITY:
      case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
      case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
      case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
      case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
        break;
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
        result = translate_event(attribute.value.programmaticEvent.event, each, out);
        break;
      case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
        result = translate_event(attribute.value.launchCompletionEvent.event, each, out);
        break;
      case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
        // The handle it returns is a name for kernels on the device: it travels as it is.
        out.device_node = &attribute.value.deviceUpdatableKernelNode.devNode;
        std::memset(each.value + sizeof(int), 0, sizeof each.value - sizeof(int));
        break;
      default:
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (result != CUDA_SUCCESS) return result;
    ++out.count;
  }
  return CUDA_SUCCESS;
}

namespace api {

CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                        unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                        unsigned int sharedMemBytes, CUstream hStream, void** kernelParams, void** extra) {
  const LaunchShape shape{{gridDimX, gridDimY, gridDimZ}, {blockDimX, blockDimY, blockDimZ}, sharedMemBytes};
  return launch(f, shape, hStream, kernelParams, extra, nullptr, 0);
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction f, void** kernelParams, void** extra) {
  if (config == nullptr) return CUDA_ERROR_INVALID_VALUE;
  LaunchAttributes attributes;
  const CUresult result = translate_attributes(config->attrs, config->numAttrs, attributes);
  if (result != CUDA_SUCCESS) return result;
  const LaunchShape shape{{config->gridDimX, config->gridDimY, config->gridDimZ},
                          {config->blockDimX, config->blockDimY, config->blockDimZ},
                          config->sharedMemBytes};
  return launch(f, shape, config->hStream, kernelParams, extra, &attributes, 0);
}

CUresult cuLaunchCooperativeKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY,
                                   unsigned int gridDimZ, unsigned int blockDimX, unsigned int blockDimY,
                                   unsigned int blockDimZ, unsigned int sharedMemBytes, CUstream hStream,
                                   void** kernelParams) {
  const LaunchShape shape{{gridDimX, gridDimY, gridDimZ}, {blockDimX, blockDimY, blockDimZ}, sharedMemBytes};
  return launch(f, shape, hStream, kernelParams, nullptr, nullptr, wire::kLaunchCooperative);
}

}  // namespace api

}  // namespace gpupool::guest
