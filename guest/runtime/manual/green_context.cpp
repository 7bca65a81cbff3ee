// Green contexts: part of a device's multiprocessors. A green context is a Context of ours whose `owner` is
// the device's primary context: what is made while it is current belongs there, but for streams.
#include <cstring>
#include <vector>

#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/message.hpp"
#include "guest_api.hpp"
#include "wire/cpp/resource_message.hpp"

namespace gpupool::guest {
namespace {

static_assert(sizeof(CUdevResource::_oversize) == wire::kResourceExternalBytes);

// In the part of a CUdevResource that cuda.h keeps for the driver.
struct Mark {
  u64 magic;
  u64 number;
};
constexpr u64 kMagic = 0x6563'7275'6f73'6572;
static_assert(sizeof(Mark) <= sizeof(CUdevResource::_internal_padding));

void write(const wire::ResourceInfo& info, CUdevResource& resource) {
  resource = {};
  resource.type = static_cast<CUdevResourceType>(info.type);
  const Mark mark{kMagic, info.number};
  if (info.type != CU_DEV_RESOURCE_TYPE_INVALID) std::memcpy(resource._internal_padding, &mark, sizeof mark);
  std::memcpy(resource._oversize, info.external, sizeof info.external);
}

// The worker's number of a resource; 0 for a structure that no call has filled in.
u64 number_of(const CUdevResource& resource) {
  Mark mark{};
  std::memcpy(&mark, resource._internal_padding, sizeof mark);
  return resource.type == CU_DEV_RESOURCE_TYPE_SM && mark.magic == kMagic ? mark.number : 0;
}

CUresult take_resource(Call& call, CUdevResource* resource) {
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  write(call.get<wire::ResourceInfo>(), *resource);
  return CUDA_SUCCESS;
}

CUresult context_resource(Context& context, CUdevResource* resource, CUdevResourceType type) {
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  Call call(wire::Function::cuCtxGetDevResource);
  call.put<u64>(context.handle.bits);
  call.put<u32>(type);
  return take_resource(call, resource);
}

// The object behind a handle, alive.
CUresult find_green(CUgreenCtx handle, Context*& context) {
  context = find(reinterpret_cast<CUcontext>(handle));
  if (context == nullptr || !context->green) return CUDA_ERROR_INVALID_HANDLE;
  return context->alive.load(std::memory_order_acquire) ? CUDA_SUCCESS : CUDA_ERROR_CONTEXT_IS_DESTROYED;
}

}  // namespace

namespace api {

CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource* resource, CUdevResourceType type) {
  if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (device_info(device) == nullptr) return CUDA_ERROR_INVALID_DEVICE;
  if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  Call call(wire::Function::cuDeviceGetDevResource);
  call.put<i32>(session_device(device));
  call.put<u32>(type);
  return take_resource(call, resource);
}

CUresult cuCtxGetDevResource(CUcontext handle, CUdevResource* resource, CUdevResourceType type) {
  Context* context = handle == nullptr ? top_context() : find(handle);
  if (const CUresult result = check_context(context); result != CUDA_SUCCESS) return result;
  return context_resource(*context, resource, type);
}

CUresult cuGreenCtxGetDevResource(CUgreenCtx handle, CUdevResource* resource, CUdevResourceType type) {
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  return context_resource(*context, resource, type);
}

CUresult cuDevSmResourceSplitByCount(CUdevResource* groups, unsigned int* count, const CUdevResource* input,
                                     CUdevResource* remaining, unsigned int flags, unsigned int minimum) {
  if (count == nullptr || input == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (input->type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
  const u64 number = number_of(*input);
  if (number == 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  if (groups != nullptr && *count == 0) return CUDA_ERROR_INVALID_VALUE;
  const u32 wanted = groups == nullptr ? 0 : *count < wire::kMaxResources ? *count : wire::kMaxResources;
  Call call(wire::Function::cuDevSmResourceSplitByCount);
  call.put<u64>(number);
  call.put<u32>(wanted);
  call.put<u32>(remaining != nullptr ? 1 : 0);
  call.put<u32>(flags);
  call.put<u32>(minimum);
  call.expect_answer((u64{wanted} + 2) * sizeof(wire::ResourceInfo));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *count = call.get<u32>();
  std::vector<wire::ResourceInfo> made(wanted);
  const u64 got = call.get_array(made.data(), wanted);
  for (u64 i = 0; i < got && i < wanted; ++i) write(made[i], groups[i]);
  const auto rest = call.get<wire::ResourceInfo>();
  if (remaining != nullptr) write(rest, *remaining);
  return CUDA_SUCCESS;
}

CUresult cuDevResourceGenerateDesc(CUdevResourceDesc* out, CUdevResource* resources, unsigned int count) {
  if (out == nullptr || resources == nullptr || count == 0 || count > wire::kMaxResources)
    return CUDA_ERROR_INVALID_VALUE;
  std::vector<u64> numbers;
  for (unsigned int i = 0; i < count; ++i) {
    if (resources[i].type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
    numbers.push_back(number_of(resources[i]));
    if (numbers.back() == 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  }
  Call call(wire::Function::cuDevResourceGenerateDesc);
  call.put_array(numbers.data(), numbers.size());
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  *out = reinterpret_cast<CUdevResourceDesc>(call.get<u64>());
  return CUDA_SUCCESS;
}

CUresult cuGreenCtxCreate(CUgreenCtx* out, CUdevResourceDesc description, CUdevice device,
                          unsigned int flags) {
  if (out == nullptr || flags != CU_GREEN_CTX_DEFAULT_STREAM || description == nullptr)
    return CUDA_ERROR_INVALID_VALUE;
  // A green context holds its device's primary context (cuda.h).
  CUcontext handle = nullptr;
  if (const CUresult result = api::cuDevicePrimaryCtxRetain(&handle, device); result != CUDA_SUCCESS)
    return result;
  CUresult error = CUDA_SUCCESS;
  Context* context =
      create_green_context(device, *find(handle), reinterpret_cast<u64>(description), flags, error);
  if (context == nullptr) {
    static_cast<void>(api::cuDevicePrimaryCtxRelease_v2(device));  // `error` is what the program must know
    return error;
  }
  *out = reinterpret_cast<CUgreenCtx>(context);
  return CUDA_SUCCESS;
}

CUresult cuGreenCtxDestroy(CUgreenCtx handle) {
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  const CUdevice device = context->device;
  if (const CUresult result = destroy_green_context(*context); result != CUDA_SUCCESS) return result;
  return api::cuDevicePrimaryCtxRelease_v2(device);
}

CUresult cuCtxFromGreenCtx(CUcontext* out, CUgreenCtx handle) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  *out = handle_of(context);
  return CUDA_SUCCESS;
}

CUresult cuGreenCtxGetId(CUgreenCtx handle, unsigned long long* id) {
  if (id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  if (handle == nullptr) handle = reinterpret_cast<CUgreenCtx>(top_context());
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  *id = context->id;
  return CUDA_SUCCESS;
}

CUresult cuGreenCtxRecordEvent(CUgreenCtx handle, CUevent event) {
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  return api::cuCtxRecordEvent(handle_of(context), event);
}

CUresult cuGreenCtxWaitEvent(CUgreenCtx handle, CUevent event) {
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  return api::cuCtxWaitEvent(handle_of(context), event);
}

CUresult cuGreenCtxStreamCreate(CUstream* out, CUgreenCtx handle, unsigned int flags, int priority) {
  Context* context = nullptr;
  if (const CUresult result = find_green(handle, context); result != CUDA_SUCCESS) return result;
  if (out == nullptr || flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
  const ScopedContext scope(context);
  return api::cuStreamCreateWithPriority(out, flags, priority);
}

CUresult cuStreamGetGreenCtx(CUstream handle, CUgreenCtx* out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  CUresult error = CUDA_SUCCESS;
  const Stream* stream = resolve_stream(handle, error);
  if (stream == nullptr) return error;
  *out = reinterpret_cast<CUgreenCtx>(stream->green);
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
