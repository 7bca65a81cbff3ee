// Attributes of streams. All are hints here: they are kept and given back.
#include <array>

#include "hostd/softgpu/api/stream.hpp"

namespace gpupool::softgpu {

namespace {

constexpr std::array kKnown = {CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW,
                               CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY, CU_LAUNCH_ATTRIBUTE_PRIORITY,
                               CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP, CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN};

void require_known(CUstreamAttrID attribute) {
  for (const auto known : kKnown)
    if (known == attribute) return;
  fail(CUDA_ERROR_INVALID_VALUE);
}

}  // namespace

GPUPOOL_CUDA CUresult cuStreamGetAttribute(CUstream handle, CUstreamAttrID attribute,
                                           CUstreamAttrValue* out) {
  return call([&] {
    require(out != nullptr);
    require_known(attribute);
    const auto stream = resolve_stream(handle);
    const std::lock_guard lock(stream->context->submit_mutex);
    const auto found = stream->attributes.find(attribute);
    *out = found != stream->attributes.end() ? found->second : CUstreamAttrValue{};
    if (attribute == CU_LAUNCH_ATTRIBUTE_PRIORITY) out->priority = stream->priority;
    if (attribute == CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY && found == stream->attributes.end())
      out->syncPolicy = CU_SYNC_POLICY_AUTO;
  });
}

GPUPOOL_CUDA CUresult cuStreamSetAttribute(CUstream handle, CUstreamAttrID attribute,
                                           const CUstreamAttrValue* value) {
  return call([&] {
    require(value != nullptr);
    require_known(attribute);
    require(attribute != CU_LAUNCH_ATTRIBUTE_PRIORITY);  // given once, when the stream is made
    const auto stream = resolve_stream(handle);
    const std::lock_guard lock(stream->context->submit_mutex);
    stream->attributes[attribute] = *value;
  });
}

GPUPOOL_CUDA CUresult cuStreamCopyAttributes(CUstream to, CUstream from) {
  return call([&] {
    const auto source = resolve_stream(from), target = resolve_stream(to);
    require(source->context == target->context);
    const std::lock_guard lock(source->context->submit_mutex);
    target->attributes = source->attributes;
  });
}

}  // namespace gpupool::softgpu
