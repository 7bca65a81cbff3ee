#include "guest/runtime/manual/graph_params.hpp"

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/launch.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

CUresult pinned_place(const void* address, wire::Place& place) {
  const u64 offset = Session::current()->pinned_offset(address, 1);
  if (offset == 0) {
    log_unsupported("graph copies of pageable memory");
    return CUDA_ERROR_NOT_SUPPORTED;
  }
  place.kind = wire::PlaceKind::piece;
  place.address = offset;
  return CUDA_SUCCESS;
}

CUresult make_place(CUmemorytype type, const void* host, CUdeviceptr device, CUarray array,
                    wire::Place& place) {
  switch (type) {
    case CU_MEMORYTYPE_HOST:
      return pinned_place(host, place);
    case CU_MEMORYTYPE_UNIFIED:
      if (side_of(device) != Side::device) return pinned_place(reinterpret_cast<const void*>(device), place);
      [[fallthrough]];
    case CU_MEMORYTYPE_DEVICE:
      place.kind = wire::PlaceKind::device;
      place.address = device;
      return CUDA_SUCCESS;
    case CU_MEMORYTYPE_ARRAY:
      place.kind = wire::PlaceKind::array;
      place.address = bits(array);
      return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace

CUresult context_index(CUcontext handle, u32& index) {
  index = 0;
  if (handle == nullptr) return CUDA_SUCCESS;
  const Context* context = find(handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  index = context->index;
  return CUDA_SUCCESS;
}

CUDA_KERNEL_NODE_PARAMS_v2 widen(const CUDA_KERNEL_NODE_PARAMS_v1& params) {
  CUDA_KERNEL_NODE_PARAMS_v2 wide{};
  static_assert(sizeof params == offsetof(CUDA_KERNEL_NODE_PARAMS_v2, kern), "v2 only appends");
  std::memcpy(&wide, &params, sizeof params);
  return wide;
}

CUDA_KERNEL_NODE_PARAMS_v2 widen(const CUDA_KERNEL_NODE_PARAMS_v3& params) {
  CUDA_KERNEL_NODE_PARAMS_v2 same{};
  static_assert(sizeof params == sizeof same, "v3 has the fields of v2");
  std::memcpy(&same, &params, sizeof params);
  return same;
}

CUDA_MEMSET_NODE_PARAMS narrow(const CUDA_MEMSET_NODE_PARAMS_v2& params) {
  CUDA_MEMSET_NODE_PARAMS without{};
  static_assert(sizeof without == offsetof(CUDA_MEMSET_NODE_PARAMS_v2, ctx), "v2 only appends");
  std::memcpy(&without, &params, sizeof without);
  return without;
}

CUresult put_kernel(Call& call, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Function* function = params->func != nullptr ? find(params->func) : find(params->kern);
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
  wire::GraphKernel kernel{function->handle,
                           {params->gridDimX, params->gridDimY, params->gridDimZ},
                           {params->blockDimX, params->blockDimY, params->blockDimZ},
                           params->sharedMemBytes,
                           0};
  // cuda.h: the context is ignored where `func` is set.
  if (params->func == nullptr)
    if (const CUresult result = context_index(params->ctx, kernel.context); result != CUDA_SUCCESS)
      return result;
  if (const CUresult result = describe_parameters(*function); result != CUDA_SUCCESS) return result;
  ParameterSource source;
  if (const CUresult result = read_parameters(*function, params->kernelParams, params->extra, source);
      result != CUDA_SUCCESS)
    return result;
  std::vector<u8> packed(function->parameter_bytes);
  pack_parameters(*function, source, packed.data());
  call.put(kernel);
  call.put_array(packed.data(), packed.size());
  return CUDA_SUCCESS;
}

CUresult put_copy(Call& call, const CUDA_MEMCPY3D* params, CUcontext context) {
  if (params == nullptr || params->WidthInBytes == 0 || params->Height == 0 || params->Depth == 0)
    return CUDA_ERROR_INVALID_VALUE;
  wire::BoxCopy box{};
  CUresult result =
      make_place(params->srcMemoryType, params->srcHost, params->srcDevice, params->srcArray, box.source);
  if (result != CUDA_SUCCESS) return result;
  result = make_place(params->dstMemoryType, params->dstHost, params->dstDevice, params->dstArray,
                      box.destination);
  if (result != CUDA_SUCCESS) return result;
  box.source.lod = static_cast<u32>(params->srcLOD);
  box.source.x_bytes = params->srcXInBytes;
  box.source.y = params->srcY;
  box.source.z = params->srcZ;
  box.source.pitch = params->srcPitch;
  box.source.height = params->srcHeight;
  box.destination.lod = static_cast<u32>(params->dstLOD);
  box.destination.x_bytes = params->dstXInBytes;
  box.destination.y = params->dstY;
  box.destination.z = params->dstZ;
  box.destination.pitch = params->dstPitch;
  box.destination.height = params->dstHeight;
  box.width_bytes = params->WidthInBytes;
  box.height = params->Height;
  box.depth = params->Depth;
  result = context_index(context, box.source_context);
  if (result == CUDA_SUCCESS) call.put(box);
  return result;
}

CUresult put_memset(Call& call, const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  wire::GraphMemset fill{
      params->dst, params->pitch, params->value, params->elementSize, params->width, params->height, 0, 0};
  const CUresult result = context_index(context, fill.context);
  if (result == CUDA_SUCCESS) call.put(fill);
  return result;
}

namespace api {
namespace {

CUresult get_kernel(CUgraphNode node, wire::GraphKernel& kernel, std::shared_ptr<NodeStorage>& storage) {
  Call call(wire::Function::cuGraphKernelNodeGetParams_v2);
  call.put(bits(node));
  call.expect_answer(wire::kMaxParameterBytes + 256);
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  kernel = call.get<wire::GraphKernel>();
  storage = node_storage(node);
  storage->words.assign(wire::kMaxParameterBytes / sizeof(u64) + 1, 0);
  const u64 bytes = call.get_array(reinterpret_cast<u8*>(storage->words.data()), wire::kMaxParameterBytes);
  storage->words.resize(bytes / sizeof(u64) + 1);
  return CUDA_SUCCESS;
}

// The Function behind a wire handle: what the program knows it as.
Function* function_of(wire::Handle handle) {
  Function* found = nullptr;
  g_functions.each([&](Function& function) {
    if (function.handle == handle) found = &function;
  });
  return found;
}

template <typename Params>
CUresult fill_kernel(CUgraphNode node, Params& params, Function*& function) {
  wire::GraphKernel kernel{};
  std::shared_ptr<NodeStorage> storage;
  if (const CUresult result = get_kernel(node, kernel, storage); result != CUDA_SUCCESS) return result;
  function = function_of(kernel.function);
  if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;  // its module is gone
  params = Params{};
  params.gridDimX = kernel.grid[0];
  params.gridDimY = kernel.grid[1];
  params.gridDimZ = kernel.grid[2];
  params.blockDimX = kernel.block[0];
  params.blockDimY = kernel.block[1];
  params.blockDimZ = kernel.block[2];
  params.sharedMemBytes = kernel.shared_bytes;
  storage->pointers.clear();
  for (const Parameter& parameter : function->parameters)
    storage->pointers.push_back(reinterpret_cast<u8*>(storage->words.data()) + parameter.offset);
  params.kernelParams = storage->pointers.empty() ? nullptr : storage->pointers.data();
  return CUDA_SUCCESS;
}

}  // namespace

CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Function* function = nullptr;
  const CUresult result = fill_kernel(node, *params, function);
  if (result != CUDA_SUCCESS) return result;
  // A kernel of a library is answered as the kernel it is; its function handle is the same object.
  params->func = reinterpret_cast<CUfunction>(function);
  if (function->context == nullptr) params->kern = reinterpret_cast<CUkernel>(function);
  return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Function* function = nullptr;
  const CUresult result = fill_kernel(node, *params, function);
  if (result == CUDA_SUCCESS) params->func = reinterpret_cast<CUfunction>(function);
  return result;
}

CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  Call call(wire::Function::cuGraphKernelNodeSetParams_v2);
  call.put(bits(node));
  const CUresult result = put_kernel(call, params);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUDA_KERNEL_NODE_PARAMS_v2 wide = widen(*params);
  return api::cuGraphKernelNodeSetParams_v2(node, &wide);
}

CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2* params) {
  Call call(wire::Function::cuGraphExecKernelNodeSetParams_v2);
  call.put(bits(exec));
  call.put(bits(node));
  const CUresult result = put_kernel(call, params);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1* params) {
  if (params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUDA_KERNEL_NODE_PARAMS_v2 wide = widen(*params);
  return api::cuGraphExecKernelNodeSetParams_v2(exec, node, &wide);
}

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphMemcpyNodeGetParams);
  call.put(bits(node));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto box = call.get<wire::BoxCopy>();
  *params = CUDA_MEMCPY3D{};
  u8* base = Session::current()->window().base;
  const auto type_of = [](wire::PlaceKind kind) {
    if (kind == wire::PlaceKind::piece) return CU_MEMORYTYPE_HOST;
    return kind == wire::PlaceKind::array ? CU_MEMORYTYPE_ARRAY : CU_MEMORYTYPE_DEVICE;
  };
  params->srcMemoryType = type_of(box.source.kind);
  params->dstMemoryType = type_of(box.destination.kind);
  if (params->srcMemoryType == CU_MEMORYTYPE_HOST) params->srcHost = base + box.source.address;
  if (params->dstMemoryType == CU_MEMORYTYPE_HOST) params->dstHost = base + box.destination.address;
  if (params->srcMemoryType == CU_MEMORYTYPE_DEVICE) params->srcDevice = box.source.address;
  if (params->dstMemoryType == CU_MEMORYTYPE_DEVICE) params->dstDevice = box.destination.address;
  if (params->srcMemoryType == CU_MEMORYTYPE_ARRAY)
    params->srcArray = reinterpret_cast<CUarray>(box.source.address);
  if (params->dstMemoryType == CU_MEMORYTYPE_ARRAY)
    params->dstArray = reinterpret_cast<CUarray>(box.destination.address);
  params->srcXInBytes = box.source.x_bytes;
  params->srcY = box.source.y;
  params->srcZ = box.source.z;
  params->srcLOD = box.source.lod;
  params->srcPitch = box.source.pitch;
  params->srcHeight = box.source.height;
  params->dstXInBytes = box.destination.x_bytes;
  params->dstY = box.destination.y;
  params->dstZ = box.destination.z;
  params->dstLOD = box.destination.lod;
  params->dstPitch = box.destination.pitch;
  params->dstHeight = box.destination.height;
  params->WidthInBytes = box.width_bytes;
  params->Height = box.height;
  params->Depth = box.depth;
  return CUDA_SUCCESS;
}

CUresult cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D* params) {
  Call call(wire::Function::cuGraphMemcpyNodeSetParams);
  call.put(bits(node));
  const CUresult result = put_copy(call, params, nullptr);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D* params,
                                        CUcontext context) {
  Call call(wire::Function::cuGraphExecMemcpyNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  const CUresult result = put_copy(call, params, context);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

CUresult cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_MEMSET_NODE_PARAMS* params, CUcontext context) {
  Call call(wire::Function::cuGraphExecMemsetNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  const CUresult result = put_memset(call, params, context);
  return result == CUDA_SUCCESS ? call.wait() : result;
}

CUresult cuGraphHostNodeGetParams(CUgraphNode node, CUDA_HOST_NODE_PARAMS* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphHostNodeGetParams);
  call.put(bits(node));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const std::shared_ptr<HostCall> host_call = find_host_call(call.get<u32>());
  if (host_call == nullptr) return CUDA_ERROR_INVALID_VALUE;
  params->fn = host_call->function;
  params->userData = host_call->data;
  return CUDA_SUCCESS;
}

CUresult cuGraphKernelNodeGetAttribute(CUgraphNode node, CUkernelNodeAttrID attribute,
                                       CUkernelNodeAttrValue* value) {
  if (node == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphKernelNodeGetAttribute);
  call.put(bits(node));
  call.put(static_cast<u32>(attribute));
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS) *value = call.get<CUkernelNodeAttrValue>();
  return result;
}

CUresult cuGraphKernelNodeSetAttribute(CUgraphNode node, CUkernelNodeAttrID attribute,
                                       const CUkernelNodeAttrValue* value) {
  if (node == nullptr || value == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphKernelNodeSetAttribute);
  call.put(bits(node));
  call.put(static_cast<u32>(attribute));
  call.put(*value);
  return call.wait();
}

}  // namespace api
}  // namespace gpupool::guest
