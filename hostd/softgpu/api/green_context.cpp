// Green contexts: a share of a device's multiprocessors. Work of one runs as all other work does; what counts
// here is who has which multiprocessors, and that the rules of cuda.h for splitting them hold.
#include <algorithm>
#include <cstring>
#include <vector>

#include "hostd/softgpu/api/context.hpp"
#include "hostd/softgpu/api/device.hpp"
#include "hostd/softgpu/api/stream.hpp"
#include "hostd/softgpu/api/thread_contexts.hpp"

namespace gpupool::softgpu {
namespace {

// cuda.h on compute capability 8.x: at least 4, in pairs; one by one where co-scheduling is given up.
constexpr u32 kLeastMultiprocessors = 4;
constexpr u32 kAlignment = 2;

// What the driver's part of a CUdevResource holds here.
struct Share {
  u64 magic;
  u32 device;
  u32 first;
  u32 count;
  u32 split;  // number of the split that made it; 0: the whole device or a context's share
};
constexpr u64 kMagic = 0x534d'5368'6172'6521;
static_assert(sizeof(Share) <= sizeof(CUdevResource::_internal_padding));

CUdevResource resource_of(const Share& share) {
  CUdevResource resource{};
  resource.type = CU_DEV_RESOURCE_TYPE_SM;
  std::memcpy(resource._internal_padding, &share, sizeof share);
  resource.sm.smCount = share.count;
  resource.sm.minSmPartitionSize = kLeastMultiprocessors;
  resource.sm.smCoscheduledAlignment = kAlignment;
  return resource;
}

Share share_of(const CUdevResource& resource) {
  require(resource.type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
  Share share{};
  std::memcpy(&share, resource._internal_padding, sizeof share);
  require(share.magic == kMagic, CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
  return share;
}

Share whole(const Device& device) {
  return {kMagic, static_cast<u32>(device.ordinal), 0, device.multiprocessors, 0};
}

struct GreenContext {
  CUgreenCtx handle = nullptr;
  Share share{};
  std::shared_ptr<Context> primary;
  u64 id = 0;
};

struct Description {
  CUdevResourceDesc handle = nullptr;
  Share share{};
};

Registry<GreenContext, CUgreenCtx>& green_contexts() {
  static auto* registry = new Registry<GreenContext, CUgreenCtx>(0x30);
  return *registry;
}

Registry<Description, CUdevResourceDesc>& descriptions() {
  static auto* registry = new Registry<Description, CUdevResourceDesc>(0x31);
  return *registry;
}

void require_type(CUdevResourceType type) {
  require(type == CU_DEV_RESOURCE_TYPE_SM, CUDA_ERROR_INVALID_RESOURCE_TYPE);
}

}  // namespace

GPUPOOL_CUDA CUresult cuDeviceGetDevResource(CUdevice ordinal, CUdevResource* out, CUdevResourceType type) {
  return call([&] {
    require(out != nullptr);
    const Device& device = device_of(ordinal);
    require_type(type);
    *out = resource_of(whole(device));
  });
}

GPUPOOL_CUDA CUresult cuCtxGetDevResource(CUcontext handle, CUdevResource* out, CUdevResourceType type) {
  return call([&] {
    require(out != nullptr);
    const auto context = context_of(handle);
    require_type(type);
    *out = resource_of(whole(*context->device));
  });
}

GPUPOOL_CUDA CUresult cuGreenCtxGetDevResource(CUgreenCtx handle, CUdevResource* out,
                                               CUdevResourceType type) {
  return call([&] {
    require(out != nullptr);
    const auto green = green_contexts().get(handle);
    require_type(type);
    *out = resource_of(green->share);
  });
}

GPUPOOL_CUDA CUresult cuDevSmResourceSplitByCount(CUdevResource* groups, unsigned int* count,
                                                  const CUdevResource* input, CUdevResource* remaining,
                                                  unsigned int flags, unsigned int minimum) {
  return call([&] {
    static std::atomic<u32> splits{0};
    require(count != nullptr && input != nullptr);
    require((flags & ~u32{CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING |
                          CU_DEV_SM_RESOURCE_SPLIT_MAX_POTENTIAL_CLUSTER_SIZE}) == 0);
    const Share share = share_of(*input);
    require(share.split == 0, CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);  // not split twice (cuda.h)
    require(minimum <= share.count && (groups == nullptr || *count != 0));
    const bool fine = (flags & CU_DEV_SM_RESOURCE_SPLIT_IGNORE_SM_COSCHEDULING) != 0;
    const u32 alignment = fine ? 1 : kAlignment;
    const u32 least = fine ? 1 : kLeastMultiprocessors;
    const u32 size = (std::max(minimum, least) + alignment - 1) / alignment * alignment;
    const u32 possible = share.count / size;
    require(possible != 0, CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
    const u32 made = groups == nullptr ? possible : std::min(*count, possible);
    const u32 split = splits.fetch_add(1) + 1;
    for (u32 i = 0; groups != nullptr && i < made; ++i)
      groups[i] = resource_of({kMagic, share.device, share.first + i * size, size, split});
    *count = made;
    if (remaining == nullptr) return;
    const u32 rest = share.count - made * size;
    *remaining = CUdevResource{};
    if (rest != 0) *remaining = resource_of({kMagic, share.device, share.first + made * size, rest, split});
  });
}

GPUPOOL_CUDA CUresult cuDevResourceGenerateDesc(CUdevResourceDesc* out, CUdevResource* resources,
                                                unsigned int count) {
  return call([&] {
    require(out != nullptr && resources != nullptr && count != 0);
    auto description = std::make_shared<Description>();
    description->share = share_of(resources[0]);
    for (u32 i = 1; i < count; ++i) {
      const Share share = share_of(resources[i]);
      // Parts of one split of one device only (cuda.h).
      require(share.device == description->share.device && share.split != 0 &&
                  share.split == description->share.split,
              CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION);
      description->share.count += share.count;
    }
    *out = descriptions().add(std::move(description));
  });
}

GPUPOOL_CUDA CUresult cuGreenCtxCreate(CUgreenCtx* out, CUdevResourceDesc handle, CUdevice ordinal,
                                       unsigned int flags) {
  return call([&] {
    require(out != nullptr && flags == CU_GREEN_CTX_DEFAULT_STREAM);
    const auto description = descriptions().get(handle);
    require(static_cast<u32>(device_of(ordinal).ordinal) == description->share.device,
            CUDA_ERROR_INVALID_DEVICE);
    CUcontext primary = nullptr;
    const CUresult retained = cuDevicePrimaryCtxRetain(&primary, ordinal);
    require(retained == CUDA_SUCCESS, retained);
    auto green = std::make_shared<GreenContext>();
    static std::atomic<u64> next_id{1u << 20};
    green->share = description->share;
    green->share.split = 0;  // a context's share may be split again
    green->primary = contexts().get(primary);
    green->id = next_id.fetch_add(1);
    *out = green_contexts().add(std::move(green));
  });
}

GPUPOOL_CUDA CUresult cuGreenCtxDestroy(CUgreenCtx handle) {
  return call([&] {
    const auto green = green_contexts().take(handle);
    require(green != nullptr, CUDA_ERROR_INVALID_HANDLE);
    green->primary->synchronize();
    return cuDevicePrimaryCtxRelease_v2(green->primary->device->ordinal);
  });
}

// "A normal primary context but with the resources of the green context" (cuda.h); resources change no
// result.
GPUPOOL_CUDA CUresult cuCtxFromGreenCtx(CUcontext* out, CUgreenCtx handle) {
  return call([&] {
    require(out != nullptr);
    *out = green_contexts().get(handle)->primary->handle;
  });
}

GPUPOOL_CUDA CUresult cuGreenCtxGetId(CUgreenCtx handle, unsigned long long* id) {
  return call([&] {
    require(id != nullptr);
    *id = green_contexts().get(handle)->id;
  });
}

GPUPOOL_CUDA CUresult cuGreenCtxRecordEvent(CUgreenCtx handle, CUevent event) {
  return call([&] { return cuCtxRecordEvent(green_contexts().get(handle)->primary->handle, event); });
}

GPUPOOL_CUDA CUresult cuGreenCtxWaitEvent(CUgreenCtx handle, CUevent event) {
  return call([&] { return cuCtxWaitEvent(green_contexts().get(handle)->primary->handle, event); });
}

GPUPOOL_CUDA CUresult cuGreenCtxStreamCreate(CUstream* out, CUgreenCtx handle, unsigned int flags,
                                             int priority) {
  return call([&] {
    const auto green = green_contexts().get(handle);
    require(flags == CU_STREAM_NON_BLOCKING);
    push_context(green->primary);
    const CUresult result = cuStreamCreateWithPriority(out, flags, priority);
    CUcontext popped = nullptr;
    cuCtxPopCurrent_v2(&popped);
    return result;
  });
}

}  // namespace gpupool::softgpu
