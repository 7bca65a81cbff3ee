#include "guest/runtime/manual/graph_params.hpp"

#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/manual/graph.hpp"
#include "guest/runtime/manual/graph_host_copy.hpp"
#include "guest/runtime/manual/launch.hpp"
#include "guest_api.hpp"  // generated

namespace gpupool::guest {
namespace {

// What put_copy() needs to know of one side, whichever it is.
struct CopySide {
  CUmemorytype type;
  const void* host;
  CUdeviceptr device;
  CUarray array;
  size_t x_bytes, y, z, lod, pitch, height;
};

// The program's memory of a copy node: named as it is, or by a piece of the window.
CUresult host_place(const CUDA_MEMCPY3D& copy, const CopySide& side, bool to_host, wire::Place& place,
                    std::vector<std::shared_ptr<GraphPiece>>& pieces) {
  if (side.host == nullptr) return CUDA_ERROR_INVALID_VALUE;
  BoxSide box;
  box.kind = BoxSide::Kind::host;
  box.address = reinterpret_cast<u64>(side.host);
  box.x_bytes = side.x_bytes;
  box.y = side.y;
  box.z = side.z;
  // What a single row or slice does not need, programs leave 0.
  const bool one_row = copy.Height == 1 && copy.Depth == 1;
  box.pitch = one_row && side.pitch < side.x_bytes + copy.WidthInBytes ? side.x_bytes + copy.WidthInBytes
                                                                       : side.pitch;
  box.height = copy.Depth == 1 && side.height < side.y + copy.Height ? side.y + copy.Height : side.height;
  if (box.pitch < copy.WidthInBytes) return CUDA_ERROR_INVALID_VALUE;
  const u64 last = (box.z + copy.Depth - 1) * box.height + box.y + copy.Height - 1;
  const u64 bytes = last * box.pitch + box.x_bytes + copy.WidthInBytes;
  place.kind = wire::PlaceKind::piece;
  if (!needs_graph_piece(side.host, bytes)) {
    place.address = Session::current()->pinned_offset(side.host, bytes);
    place.x_bytes = box.x_bytes;
    place.y = box.y;
    place.z = box.z;
    place.pitch = box.pitch;
    place.height = box.height;
    return CUDA_SUCCESS;
  }
  CUresult error = CUDA_SUCCESS;
  const auto piece = make_graph_piece(box, copy.WidthInBytes, copy.Height, copy.Depth, to_host, error);
  if (piece == nullptr) return error;
  pieces.push_back(piece);
  place.address = piece->bulk.offset;
  place.pitch = copy.WidthInBytes;
  place.height = copy.Height;
  return CUDA_SUCCESS;
}

CUresult make_place(const CUDA_MEMCPY3D& copy, const CopySide& given, bool to_host, wire::Place& place,
                    std::vector<std::shared_ptr<GraphPiece>>& pieces) {
  CopySide side = given;
  if (side.type == CU_MEMORYTYPE_UNIFIED) {
    side.type = side_of(side.device) == Side::device ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
    side.host = reinterpret_cast<const void*>(side.device);
  }
  if (side.type == CU_MEMORYTYPE_HOST) return host_place(copy, side, to_host, place, pieces);
  if (side.type != CU_MEMORYTYPE_DEVICE && side.type != CU_MEMORYTYPE_ARRAY) return CUDA_ERROR_INVALID_VALUE;
  const bool array = side.type == CU_MEMORYTYPE_ARRAY;
  place.kind = array ? wire::PlaceKind::array : wire::PlaceKind::device;
  place.address = array ? bits(side.array) : side.device;
  place.lod = static_cast<u32>(side.lod);
  place.x_bytes = side.x_bytes;
  place.y = side.y;
  place.z = side.z;
  place.pitch = side.pitch;
  place.height = side.height;
  return CUDA_SUCCESS;
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

CUresult put_kernel(Call& call, const CUDA_KERNEL_NODE_PARAMS_v2* params, KernelShape* shape) {
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
  if (shape != nullptr) *shape = {kernel, function->epoch.load(std::memory_order_acquire), current_context()};
  return CUDA_SUCCESS;
}

CUresult put_copy(Call& call, const CUDA_MEMCPY3D* params, CUcontext context,
                  std::vector<std::shared_ptr<GraphPiece>>& pieces) {
  if (params == nullptr || params->WidthInBytes == 0 || params->Height == 0 || params->Depth == 0)
    return CUDA_ERROR_INVALID_VALUE;
  const CUDA_MEMCPY3D& copy = *params;
  const CopySide from{copy.srcMemoryType, copy.srcHost, copy.srcDevice, copy.srcArray, copy.srcXInBytes,
                      copy.srcY,          copy.srcZ,    copy.srcLOD,    copy.srcPitch, copy.srcHeight};
  const CopySide to{copy.dstMemoryType, copy.dstHost, copy.dstDevice, copy.dstArray, copy.dstXInBytes,
                    copy.dstY,          copy.dstZ,    copy.dstLOD,    copy.dstPitch, copy.dstHeight};
  wire::BoxCopy box{};
  CUresult result = make_place(copy, from, false, box.source, pieces);
  if (result == CUDA_SUCCESS) result = make_place(copy, to, true, box.destination, pieces);
  if (result != CUDA_SUCCESS) return result;
  box.width_bytes = copy.WidthInBytes;
  box.height = copy.Height;
  box.depth = copy.Depth;
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

// One side of a copy node as the program gave it.
CopySide side_of_place(const wire::Place& place) {
  CopySide side{CU_MEMORYTYPE_DEVICE, nullptr,     0, nullptr, place.x_bytes, place.y, place.z, place.lod,
                place.pitch,          place.height};
  if (place.kind == wire::PlaceKind::device) {
    side.device = place.address;
  } else if (place.kind == wire::PlaceKind::array) {
    side.type = CU_MEMORYTYPE_ARRAY;
    side.array = reinterpret_cast<CUarray>(place.address);
  } else {
    side.type = CU_MEMORYTYPE_HOST;
    side.host = Session::current()->window().base + place.address;
    if (const auto piece = find_graph_piece(place.address)) {
      side.host = reinterpret_cast<const void*>(piece->side.address);
      side.x_bytes = piece->side.x_bytes;
      side.y = piece->side.y;
      side.z = piece->side.z;
      side.pitch = piece->side.pitch;
      side.height = piece->side.height;
    }
  }
  return side;
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

CUresult cuGraphMemcpyNodeGetParams(CUgraphNode node, CUDA_MEMCPY3D* params) {
  if (node == nullptr || params == nullptr) return CUDA_ERROR_INVALID_VALUE;
  Call call(wire::Function::cuGraphMemcpyNodeGetParams);
  call.put(bits(node));
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  const auto box = call.get<wire::BoxCopy>();
  const CopySide from = side_of_place(box.source);
  const CopySide to = side_of_place(box.destination);
  *params = CUDA_MEMCPY3D{};
  params->srcMemoryType = from.type;
  params->srcHost = from.host;
  params->srcDevice = from.device;
  params->srcArray = from.array;
  params->srcXInBytes = from.x_bytes;
  params->srcY = from.y;
  params->srcZ = from.z;
  params->srcLOD = from.lod;
  params->srcPitch = from.pitch;
  params->srcHeight = from.height;
  params->dstMemoryType = to.type;
  params->dstHost = const_cast<void*>(to.host);
  params->dstDevice = to.device;
  params->dstArray = to.array;
  params->dstXInBytes = to.x_bytes;
  params->dstY = to.y;
  params->dstZ = to.z;
  params->dstLOD = to.lod;
  params->dstPitch = to.pitch;
  params->dstHeight = to.height;
  params->WidthInBytes = box.width_bytes;
  params->Height = box.height;
  params->Depth = box.depth;
  return CUDA_SUCCESS;
}

CUresult cuGraphMemcpyNodeSetParams(CUgraphNode node, const CUDA_MEMCPY3D* params) {
  Call call(wire::Function::cuGraphMemcpyNodeSetParams);
  call.put(bits(node));
  std::vector<std::shared_ptr<GraphPiece>> pieces;
  if (const CUresult result = put_copy(call, params, nullptr, pieces); result != CUDA_SUCCESS) return result;
  const CUresult result = call.wait();
  if (result == CUDA_SUCCESS && !pieces.empty()) keep_for_node(bits(node), {pieces.begin(), pieces.end()});
  return result;
}

CUresult cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node, const CUDA_MEMCPY3D* params,
                                        CUcontext context) {
  Call call(wire::Function::cuGraphExecMemcpyNodeSetParams);
  call.put(bits(exec));
  call.put(bits(node));
  std::vector<std::shared_ptr<GraphPiece>> pieces;
  if (const CUresult result = put_copy(call, params, context, pieces); result != CUDA_SUCCESS) return result;
  if (const CUresult result = call.wait(); result != CUDA_SUCCESS) return result;
  change_exec(exec, [&](GraphContents& contents) {
    std::erase_if(contents.copies, [&](const HostCopy& copy) { return copy.node == bits(node); });
    for (const auto& piece : pieces) contents.copies.push_back({bits(node), piece});
  });
  return CUDA_SUCCESS;
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
