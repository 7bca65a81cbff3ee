// CUDA arrays.
#include "hostd/softgpu/api/array.hpp"

#include <algorithm>
#include <cstring>

#include "hostd/softgpu/api/capture.hpp"

namespace gpupool::softgpu {

namespace {

u64 format_bytes(CUarray_format format) {
  switch (format) {
    case CU_AD_FORMAT_UNSIGNED_INT8:
    case CU_AD_FORMAT_SIGNED_INT8:
      return 1;
    case CU_AD_FORMAT_UNSIGNED_INT16:
    case CU_AD_FORMAT_SIGNED_INT16:
    case CU_AD_FORMAT_HALF:
      return 2;
    case CU_AD_FORMAT_UNSIGNED_INT32:
    case CU_AD_FORMAT_SIGNED_INT32:
    case CU_AD_FORMAT_FLOAT:
      return 4;
    default:
      fail(CUDA_ERROR_NOT_SUPPORTED);
  }
}

}  // namespace

std::shared_ptr<Array> create_array(const CUDA_ARRAY3D_DESCRIPTOR& descriptor) {
  require(descriptor.Width != 0 && descriptor.Width <= 131072 && descriptor.Height <= 131072 &&
          descriptor.Depth <= 131072);
  require(descriptor.NumChannels == 1 || descriptor.NumChannels == 2 || descriptor.NumChannels == 4);
  constexpr u32 kPlain =
      CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_SURFACE_LDST | CUDA_ARRAY3D_CUBEMAP | CUDA_ARRAY3D_TEXTURE_GATHER;
  require((descriptor.Flags & ~kPlain) == 0, CUDA_ERROR_NOT_SUPPORTED);
  const auto context = current_context();
  refuse_unsafe_call();
  auto array = std::make_shared<Array>();
  array->descriptor = descriptor;
  array->row_bytes = descriptor.Width * descriptor.NumChannels * format_bytes(descriptor.Format);
  array->rows = std::max<u64>(descriptor.Height, 1);
  array->planes = std::max<u64>(descriptor.Depth, 1);
  array->device = context->device->ordinal;
  array->context_id = context->id;
  const u64 bytes = round_up(array->row_bytes * array->rows * array->planes, kSmallAlignment);
  require(context->device->charge(bytes), CUDA_ERROR_OUT_OF_MEMORY);
  array->base = arena().allocate(bytes, bytes < kLargeBytes ? kSmallAlignment : kLargeAlignment);
  if (array->base == 0) {
    context->device->release(bytes);
    fail(CUDA_ERROR_OUT_OF_MEMORY);
  }
  array->bytes = bytes;
  if (leftover_byte() != 0) std::memset(reinterpret_cast<void*>(array->base), leftover_byte(), bytes);
  arrays().add(array);
  return array;
}

Array::~Array() {
  if (base == 0) return;
  arena().release(base, bytes);
  device_of(device).release(bytes);
}

Registry<Array, CUarray>& arrays() {
  static auto* registry = new Registry<Array, CUarray>(4);
  return *registry;
}

void drop_arrays(const Context& context) {
  for (const auto& array : arrays().all())
    if (array->context_id == context.id) arrays().take(array->handle);
}

GPUPOOL_CUDA CUresult cuArrayCreate_v2(CUarray* out, const CUDA_ARRAY_DESCRIPTOR* descriptor) {
  return call([&] {
    require(out != nullptr && descriptor != nullptr);
    CUDA_ARRAY3D_DESCRIPTOR full{};
    full.Width = descriptor->Width;
    full.Height = descriptor->Height;
    full.Format = descriptor->Format;
    full.NumChannels = descriptor->NumChannels;
    *out = create_array(full)->handle;
  });
}

GPUPOOL_CUDA CUresult cuArray3DCreate_v2(CUarray* out, const CUDA_ARRAY3D_DESCRIPTOR* descriptor) {
  return call([&] {
    require(out != nullptr && descriptor != nullptr);
    *out = create_array(*descriptor)->handle;
  });
}

GPUPOOL_CUDA CUresult cuArrayGetDescriptor_v2(CUDA_ARRAY_DESCRIPTOR* out, CUarray handle) {
  return call([&] {
    require(out != nullptr);
    const CUDA_ARRAY3D_DESCRIPTOR& full = arrays().get(handle)->descriptor;
    *out = CUDA_ARRAY_DESCRIPTOR{full.Width, full.Height, full.Format, full.NumChannels};
  });
}

GPUPOOL_CUDA CUresult cuArray3DGetDescriptor_v2(CUDA_ARRAY3D_DESCRIPTOR* out, CUarray handle) {
  return call([&] {
    require(out != nullptr);
    *out = arrays().get(handle)->descriptor;
  });
}

GPUPOOL_CUDA CUresult cuArrayGetMemoryRequirements(CUDA_ARRAY_MEMORY_REQUIREMENTS* out, CUarray handle,
                                                   CUdevice device) {
  return call([&] {
    require(out != nullptr);
    device_of(device);
    *out = CUDA_ARRAY_MEMORY_REQUIREMENTS{};
    out->size = arrays().get(handle)->bytes;
    out->alignment = kSmallAlignment;
  });
}

GPUPOOL_CUDA CUresult cuArrayDestroy(CUarray handle) {
  return call([&] {
    require(!arrays().get(handle)->graphics, CUDA_ERROR_INVALID_HANDLE);
    const auto array = arrays().take(handle);
    require(array != nullptr, CUDA_ERROR_INVALID_HANDLE);
    synchronize_device(device_of(array->device));
  });
}

}  // namespace gpupool::softgpu
