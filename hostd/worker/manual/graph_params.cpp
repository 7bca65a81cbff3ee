// Getting and setting the parameters of nodes, in graphs and in executable graphs.
#include "hostd/worker/manual/graph_params.hpp"

#include <algorithm>
#include <cstring>

#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// Bytes from a box's origin to its end; false when 64 bits cannot hold them.
bool extent(const wire::Place& place, const wire::BoxCopy& box, u64& bytes) {
  // Drivers take 0 for "as narrow as the box".
  u64 pitch = place.pitch;
  if (pitch == 0 && __builtin_add_overflow(place.x_bytes, box.width_bytes, &pitch)) return false;
  u64 plane = place.height;
  if (plane == 0 && __builtin_add_overflow(place.y, box.height, &plane)) return false;
  u64 rows = 0;
  if (__builtin_add_overflow(place.z, box.depth - 1, &rows) || __builtin_mul_overflow(rows, plane, &rows) ||
      __builtin_add_overflow(rows, place.y, &rows) || __builtin_add_overflow(rows, box.height - 1, &rows) ||
      __builtin_mul_overflow(rows, pitch, &bytes) || __builtin_add_overflow(bytes, place.x_bytes, &bytes))
    return false;
  return !__builtin_add_overflow(bytes, box.width_bytes, &bytes);
}

struct Side {
  CUmemorytype type{};
  void* host = nullptr;
  CUdeviceptr device = 0;
  CUarray array = nullptr;
};

CUresult resolve(Worker& worker, const wire::BoxCopy& box, const wire::Place& place, Side& side) {
  if (place.kind == wire::PlaceKind::piece) {
    u64 bytes = 0;
    if (!extent(place, box, bytes) || !worker.window.holds_data(place.address, bytes))
      throw wire::ProtocolError("a graph copy reaches beyond the window");
    side.type = CU_MEMORYTYPE_HOST;
    side.host = worker.at(place.address);
    return CUDA_SUCCESS;
  }
  if (place.kind == wire::PlaceKind::device) {
    side.type = CU_MEMORYTYPE_DEVICE;
    side.device = place.address;
    return CUDA_SUCCESS;
  }
  if (place.kind != wire::PlaceKind::array) throw wire::ProtocolError("a graph copy between unknown places");
  const CUarray* array = worker.arrays.find(wire::Handle{place.address});
  if (array == nullptr) return CUDA_ERROR_INVALID_VALUE;
  side.type = CU_MEMORYTYPE_ARRAY;
  side.array = *array;
  return CUDA_SUCCESS;
}

// What the driver says of one side of a copy, for the client.
wire::Place place_of(Worker& worker, CUmemorytype type, const void* host, CUdeviceptr device, CUarray array) {
  wire::Place place{};
  const auto address = reinterpret_cast<u64>(host);
  const auto base = reinterpret_cast<u64>(worker.window.base);
  const auto in_window = [&](u64 value) { return value >= base && value - base < worker.window.size; };
  if (type == CU_MEMORYTYPE_ARRAY) {
    place.kind = wire::PlaceKind::array;
    place.address = worker.arrays.name_of(array).bits;
  } else if (const u64 where = type == CU_MEMORYTYPE_HOST ? address : device; in_window(where)) {
    // The driver may name pinned memory as host memory or as unified memory.
    place.kind = wire::PlaceKind::piece;
    place.address = where - base;
  } else {
    // A host address outside the window is ours and stays here; the client learns only that it is no pinned
    // one.
    place.kind = wire::PlaceKind::device;
    place.address = type == CU_MEMORYTYPE_HOST ? 0 : device;
  }
  return place;
}

// The client's handle of a function that the driver returned: a function of a module, a kernel, or what a
// kernel is in the context where it was launched last.
wire::Handle name_function(Worker& worker, CUfunction function, CUkernel kernel) {
  wire::Handle name;
  worker.functions.each([&](wire::Handle handle, const FunctionEntry& entry) {
    const bool as_kernel =
        kernel != nullptr && entry.kernel && reinterpret_cast<CUkernel>(entry.function) == kernel;
    const bool as_function =
        function != nullptr && (entry.function == function || entry.resolved == function);
    if (as_kernel || as_function) name = handle;
  });
  return name;
}

// The packed parameters of a kernel node, of the size that the function takes.
CUresult copy_parameters(Worker& worker, const CUDA_KERNEL_NODE_PARAMS_v2& params, const FunctionEntry& entry,
                         std::vector<u8>& out) {
  out.assign(entry.parameter_bytes, 0);
  if (params.kernelParams != nullptr) {
    for (size_t i = 0;; ++i) {
      size_t offset = 0;
      size_t size = 0;
      const CUresult result = entry.kernel
                                  ? worker.driver.cuKernelGetParamInfo(
                                        reinterpret_cast<CUkernel>(entry.function), i, &offset, &size)
                                  : worker.driver.cuFuncGetParamInfo(entry.function, i, &offset, &size);
      if (result == CUDA_ERROR_INVALID_VALUE) return CUDA_SUCCESS;  // past the last one
      if (result != CUDA_SUCCESS) return result;
      if (offset + size > out.size()) return CUDA_ERROR_UNKNOWN;  // not the function it was described as
      std::memcpy(out.data() + offset, params.kernelParams[i], size);
    }
  }
  if (params.extra == nullptr) return CUDA_SUCCESS;  // a kernel without parameters
  const void* buffer = nullptr;
  size_t bytes = 0;
  for (void** entry_of = params.extra; *entry_of != CU_LAUNCH_PARAM_END; entry_of += 2) {
    if (*entry_of == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = entry_of[1];
    if (*entry_of == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<const size_t*>(entry_of[1]);
  }
  if (buffer != nullptr) std::memcpy(out.data(), buffer, std::min(bytes, out.size()));
  return CUDA_SUCCESS;
}

// Of a larger graph it is not said: nothing depends on it but a wait.
bool only_kernels(Worker& worker, CUgraph graph) {
  CUgraphNode nodes[64];
  size_t count = 0;
  if (worker.driver.cuGraphGetNodes(graph, nullptr, &count) != CUDA_SUCCESS || count > std::size(nodes) ||
      worker.driver.cuGraphGetNodes(graph, nodes, &count) != CUDA_SUCCESS)
    return false;
  return std::all_of(nodes, nodes + count, [&](CUgraphNode node) {
    CUgraphNodeType type{};
    return worker.driver.cuGraphNodeGetType(node, &type) == CUDA_SUCCESS && type == CU_GRAPH_NODE_TYPE_KERNEL;
  });
}

}  // namespace

CUcontext find_context(Worker& worker, const Request& request, u32 index) {
  if (index == 0 || index == request.context_index) return request.context;
  const CUcontext* context = worker.contexts.find(wire::Handle::make(wire::HandleKind::context, 0, index));
  return context == nullptr ? nullptr : *context;
}

CUresult read_node(Worker& worker, Request& request, NodeOf& of, bool in_exec) {
  if (in_exec) {
    const CUgraphExec* exec = worker.graph_execs.find(request.in.get<wire::Handle>());
    if (exec != nullptr) of.exec = *exec;
  }
  const CUgraphNode* node = worker.graph_nodes.find(request.in.get<wire::Handle>());
  if (node == nullptr || (in_exec && of.exec == nullptr)) return CUDA_ERROR_INVALID_VALUE;
  of.node = *node;
  return CUDA_SUCCESS;
}

CUresult KernelNode::read(Worker& worker, Request& request) {
  const auto header = request.in.get<wire::GraphKernel>();
  const std::span<const u8> bytes = request.in.get_bytes(wire::kMaxParameterBytes);
  if (!bytes.empty()) std::memcpy(buffer_, bytes.data(), bytes.size());
  buffer_bytes_ = bytes.size();
  const FunctionEntry* entry = worker.functions.find(header.function);
  // Without its size known, the driver could be made to read beyond what was sent.
  if (entry == nullptr || !entry->described || buffer_bytes_ != entry->parameter_bytes)
    return CUDA_ERROR_INVALID_VALUE;
  if (entry->kernel) {
    params.kern = reinterpret_cast<CUkernel>(entry->function);
    params.ctx = find_context(worker, request, header.context);
  } else {
    params.func = entry->function;
  }
  params.gridDimX = header.grid[0];
  params.gridDimY = header.grid[1];
  params.gridDimZ = header.grid[2];
  params.blockDimX = header.block[0];
  params.blockDimY = header.block[1];
  params.blockDimZ = header.block[2];
  params.sharedMemBytes = header.shared_bytes;
  extra_[0] = CU_LAUNCH_PARAM_BUFFER_POINTER;
  extra_[1] = buffer_;
  extra_[2] = CU_LAUNCH_PARAM_BUFFER_SIZE;
  extra_[3] = &buffer_bytes_;
  extra_[4] = CU_LAUNCH_PARAM_END;
  if (buffer_bytes_ != 0) params.extra = extra_;
  return CUDA_SUCCESS;
}

CUresult CopyNode::read(Worker& worker, Request& request) {
  const auto box = request.in.get<wire::BoxCopy>();
  if (box.width_bytes == 0 || box.height == 0 || box.depth == 0) return CUDA_ERROR_INVALID_VALUE;
  Side source;
  Side destination;
  if (const CUresult result = resolve(worker, box, box.source, source); result != CUDA_SUCCESS) return result;
  if (const CUresult result = resolve(worker, box, box.destination, destination); result != CUDA_SUCCESS)
    return result;
  params.srcXInBytes = box.source.x_bytes;
  params.srcY = box.source.y;
  params.srcZ = box.source.z;
  params.srcLOD = box.source.lod;
  params.srcMemoryType = source.type;
  params.srcHost = source.host;
  params.srcDevice = source.device;
  params.srcArray = source.array;
  params.srcPitch = box.source.pitch;
  params.srcHeight = box.source.height;
  params.dstXInBytes = box.destination.x_bytes;
  params.dstY = box.destination.y;
  params.dstZ = box.destination.z;
  params.dstLOD = box.destination.lod;
  params.dstMemoryType = destination.type;
  params.dstHost = destination.host;
  params.dstDevice = destination.device;
  params.dstArray = destination.array;
  params.dstPitch = box.destination.pitch;
  params.dstHeight = box.destination.height;
  params.WidthInBytes = box.width_bytes;
  params.Height = box.height;
  params.Depth = box.depth;
  context = find_context(worker, request, box.source_context);
  return CUDA_SUCCESS;
}

CUresult MemsetNode::read(Worker& worker, Request& request) {
  const auto memset = request.in.get<wire::GraphMemset>();
  params.dst = memset.destination;
  params.pitch = memset.pitch;
  params.value = memset.value;
  params.elementSize = memset.element_bytes;
  params.width = memset.width;
  params.height = memset.height;
  context = find_context(worker, request, memset.context);
  return CUDA_SUCCESS;
}

// node -> GraphKernel, parameters.
CUresult handle_cuGraphKernelNodeGetParams_v2(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  CUDA_KERNEL_NODE_PARAMS_v2 params{};
  CUresult result = worker.driver.cuGraphKernelNodeGetParams_v2(of.node, &params);
  if (result != CUDA_SUCCESS) return result;
  const wire::Handle name = name_function(worker, params.func, params.kern);
  const FunctionEntry* entry = worker.functions.find(name);
  if (entry == nullptr || !entry->described)
    return CUDA_ERROR_NOT_SUPPORTED;  // a kernel the client has no name for
  std::vector<u8> bytes;
  result = copy_parameters(worker, params, *entry, bytes);
  if (result != CUDA_SUCCESS) return result;
  request.out->put(wire::GraphKernel{name,
                                     {params.gridDimX, params.gridDimY, params.gridDimZ},
                                     {params.blockDimX, params.blockDimY, params.blockDimZ},
                                     params.sharedMemBytes,
                                     0});
  request.out->put_array(bytes.data(), bytes.size());
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphKernelNodeSetParams_v2(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  KernelNode kernel;
  if (const CUresult result = kernel.read(worker, request); result != CUDA_SUCCESS) return result;
  return worker.driver.cuGraphKernelNodeSetParams_v2(of.node, &kernel.params);
}

CUresult handle_cuGraphExecKernelNodeSetParams_v2(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, true); result != CUDA_SUCCESS) return result;
  KernelNode kernel;
  if (const CUresult result = kernel.read(worker, request); result != CUDA_SUCCESS) return result;
  return worker.driver.cuGraphExecKernelNodeSetParams_v2(of.exec, of.node, &kernel.params);
}

// node -> BoxCopy.
CUresult handle_cuGraphMemcpyNodeGetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  CUDA_MEMCPY3D params{};
  const CUresult result = worker.driver.cuGraphMemcpyNodeGetParams(of.node, &params);
  if (result != CUDA_SUCCESS) return result;
  wire::BoxCopy box{};
  box.source = place_of(worker, params.srcMemoryType, params.srcHost, params.srcDevice, params.srcArray);
  box.destination = place_of(worker, params.dstMemoryType, params.dstHost, params.dstDevice, params.dstArray);
  box.source.x_bytes = params.srcXInBytes;
  box.source.y = params.srcY;
  box.source.z = params.srcZ;
  box.source.lod = static_cast<u32>(params.srcLOD);
  box.source.pitch = params.srcPitch;
  box.source.height = params.srcHeight;
  box.destination.x_bytes = params.dstXInBytes;
  box.destination.y = params.dstY;
  box.destination.z = params.dstZ;
  box.destination.lod = static_cast<u32>(params.dstLOD);
  box.destination.pitch = params.dstPitch;
  box.destination.height = params.dstHeight;
  box.width_bytes = params.WidthInBytes;
  box.height = params.Height;
  box.depth = params.Depth;
  request.out->put(box);
  return CUDA_SUCCESS;
}

CUresult handle_cuGraphMemcpyNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, false); result != CUDA_SUCCESS) return result;
  CopyNode copy;
  if (const CUresult result = copy.read(worker, request); result != CUDA_SUCCESS) return result;
  return worker.driver.cuGraphMemcpyNodeSetParams(of.node, &copy.params);
}

CUresult handle_cuGraphExecMemcpyNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, true); result != CUDA_SUCCESS) return result;
  CopyNode copy;
  if (const CUresult result = copy.read(worker, request); result != CUDA_SUCCESS) return result;
  return worker.driver.cuGraphExecMemcpyNodeSetParams(of.exec, of.node, &copy.params, copy.context);
}

CUresult handle_cuGraphExecMemsetNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, true); result != CUDA_SUCCESS) return result;
  MemsetNode memset;
  if (const CUresult result = memset.read(worker, request); result != CUDA_SUCCESS) return result;
  return worker.driver.cuGraphExecMemsetNodeSetParams(of.exec, of.node, &memset.params, memset.context);
}

// exec, node, graph; u32, where an answer is wanted: whether that graph has kernels and nothing else.
CUresult handle_cuGraphExecChildGraphNodeSetParams(Worker& worker, Request& request) {
  NodeOf of;
  if (const CUresult result = read_node(worker, request, of, true); result != CUDA_SUCCESS) return result;
  const CUgraph* child = worker.graphs.find(request.in.get<wire::Handle>());
  if (child == nullptr) return CUDA_ERROR_INVALID_VALUE;
  const CUresult result = worker.driver.cuGraphExecChildGraphNodeSetParams(of.exec, of.node, *child);
  if (result == CUDA_SUCCESS && (request.flags & wire::kReply) != 0)
    request.out->put<u32>(only_kernels(worker, *child) ? 1 : 0);
  return result;
}

}  // namespace gpupool::worker
