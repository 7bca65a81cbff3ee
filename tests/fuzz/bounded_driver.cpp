// The software GPU with what a client may do for ever taken out: kernels that loop, grids of billions of
// blocks, waits for a word that nobody writes. Those only block the client's own session; a fuzzer would wait
// with it.
#include <cstring>
#include <set>
#include <string_view>
#include <unordered_set>

#include "tests/fuzz/play.hpp"

namespace gpupool::fuzz {
namespace {

constexpr u64 kMostThreads = 1u << 12;  // of one launch

worker::DriverApi g_real;
std::set<CUdeviceptr> g_memory;
std::set<std::pair<CUdeviceptr, size_t>> g_reserved, g_mapped;
std::unordered_set<const void*> g_trusted;  // modules, libraries, functions and kernels that come to an end

bool is_word(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%';
}

// Whether PTX text surely ends: it calls nothing, waits for no other thread, and branches forward only.
bool ends(const void* image) {
  const auto* text = static_cast<const char*>(image);
  if (text == nullptr || static_cast<u8>(*text) >= 0x7f) return false;
  const std::string_view ptx(text);
  for (const std::string_view word : {"call", "brx", "bar", "mbarrier", "sleep", "vote", "shfl"})
    if (ptx.find(word) != std::string_view::npos) return false;
  for (size_t at = ptx.find("bra"); at != std::string_view::npos; at = ptx.find("bra", at + 1)) {
    size_t label = at + 3;
    while (label < ptx.size() &&
           (ptx[label] == '.' || std::isalpha(static_cast<unsigned char>(ptx[label])) != 0))
      ++label;
    while (label < ptx.size() && std::isspace(static_cast<unsigned char>(ptx[label])) != 0) ++label;
    size_t end = label;
    while (end < ptx.size() && is_word(ptx[end])) ++end;
    if (end == label) return false;
    const std::string target = std::string(ptx.substr(label, end - label)) + ":";
    if (ptx.substr(0, at).find(target) != std::string_view::npos) return false;
  }
  return true;
}

bool small(u64 gx, u64 gy, u64 gz, u64 bx, u64 by, u64 bz) {
  u64 threads = 1;
  for (const u64 count : {gx, gy, gz, bx, by, bz})
    if (__builtin_mul_overflow(threads, count, &threads) || threads > kMostThreads) return false;
  return true;
}

template <typename Params>
bool small(const Params& params) {
  return small(params.gridDimX, params.gridDimY, params.gridDimZ, params.blockDimX, params.blockDimY,
               params.blockDimZ);
}

bool may_run(const CUDA_KERNEL_NODE_PARAMS_v2& params) {
  const void* function = params.func != nullptr ? static_cast<const void*>(params.func) : params.kern;
  return g_trusted.contains(function) && small(params);
}

template <typename Object>
CUresult trust(CUresult result, Object* object, bool trusted) {
  if (result == CUDA_SUCCESS && trusted) g_trusted.insert(*object);
  return result;
}

bool waits(const CUstreamBatchMemOpParams& operation) {
  return operation.operation == CU_STREAM_MEM_OP_WAIT_VALUE_32 ||
         operation.operation == CU_STREAM_MEM_OP_WAIT_VALUE_64;
}

void bound_code(worker::DriverApi& driver) {
  driver.cuModuleLoadDataEx = [](CUmodule* module, const void* image, unsigned count, CUjit_option* options,
                                 void** values) {
    return trust(g_real.cuModuleLoadDataEx(module, image, count, options, values), module, ends(image));
  };
  driver.cuLibraryLoadData = [](CUlibrary* library, const void* code, CUjit_option* options, void** values,
                                unsigned count, CUlibraryOption* more, void** more_values,
                                unsigned more_count) {
    return trust(
        g_real.cuLibraryLoadData(library, code, options, values, count, more, more_values, more_count),
        library, ends(code));
  };
  driver.cuModuleGetFunction = [](CUfunction* function, CUmodule module, const char* name) {
    return trust(g_real.cuModuleGetFunction(function, module, name), function, g_trusted.contains(module));
  };
  driver.cuLibraryGetModule = [](CUmodule* module, CUlibrary library) {
    return trust(g_real.cuLibraryGetModule(module, library), module, g_trusted.contains(library));
  };
  driver.cuLibraryGetKernel = [](CUkernel* kernel, CUlibrary library, const char* name) {
    return trust(g_real.cuLibraryGetKernel(kernel, library, name), kernel, g_trusted.contains(library));
  };
  driver.cuKernelGetFunction = [](CUfunction* function, CUkernel kernel) {
    return trust(g_real.cuKernelGetFunction(function, kernel), function, g_trusted.contains(kernel));
  };
}

void bound_launches(worker::DriverApi& driver) {
  driver.cuLaunchKernel = [](CUfunction function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                             unsigned by, unsigned bz, unsigned shared, CUstream stream, void** parameters,
                             void** extra) {
    if (!g_trusted.contains(function) || !small(gx, gy, gz, bx, by, bz)) return CUDA_SUCCESS;
    return g_real.cuLaunchKernel(function, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra);
  };
  driver.cuLaunchKernelEx = [](const CUlaunchConfig* config, CUfunction function, void** parameters,
                               void** extra) {
    if (!g_trusted.contains(function) || !small(*config)) return CUDA_SUCCESS;
    return g_real.cuLaunchKernelEx(config, function, parameters, extra);
  };
  driver.cuGraphAddKernelNode_v2 = [](CUgraphNode* node, CUgraph graph, const CUgraphNode* from, size_t count,
                                      const CUDA_KERNEL_NODE_PARAMS_v2* params) {
    if (!may_run(*params)) return CUDA_ERROR_INVALID_VALUE;
    return g_real.cuGraphAddKernelNode_v2(node, graph, from, count, params);
  };
  driver.cuGraphKernelNodeSetParams_v2 = [](CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2* params) {
    if (!may_run(*params)) return CUDA_ERROR_INVALID_VALUE;
    return g_real.cuGraphKernelNodeSetParams_v2(node, params);
  };
  driver.cuGraphExecKernelNodeSetParams_v2 = [](CUgraphExec exec, CUgraphNode node,
                                                const CUDA_KERNEL_NODE_PARAMS_v2* params) {
    if (!may_run(*params)) return CUDA_ERROR_INVALID_VALUE;
    return g_real.cuGraphExecKernelNodeSetParams_v2(exec, node, params);
  };
}

void bound_waits(worker::DriverApi& driver) {
  driver.cuStreamWaitValue32_v2 = [](CUstream stream, CUdeviceptr, cuuint32_t, unsigned) {
    return g_real.cuStreamQuery(stream);
  };
  driver.cuStreamWaitValue64_v2 = [](CUstream stream, CUdeviceptr, cuuint64_t, unsigned) {
    return g_real.cuStreamQuery(stream);
  };
  driver.cuStreamBatchMemOp_v2 = [](CUstream stream, unsigned count, CUstreamBatchMemOpParams* operations,
                                    unsigned flags) {
    for (unsigned i = 0; i < count; ++i)
      if (waits(operations[i])) return CUDA_SUCCESS;
    return g_real.cuStreamBatchMemOp_v2(stream, count, operations, flags);
  };
}

bool waits(const CUDA_BATCH_MEM_OP_NODE_PARAMS& params) {
  for (unsigned i = 0; i < params.count; ++i)
    if (waits(params.paramArray[i])) return true;
  return false;
}

void bound_graphs(worker::DriverApi& driver) {
  driver.cuGraphAddBatchMemOpNode = [](CUgraphNode* node, CUgraph graph, const CUgraphNode* from,
                                       size_t count, const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
    if (waits(*params)) return CUDA_ERROR_INVALID_VALUE;
    return g_real.cuGraphAddBatchMemOpNode(node, graph, from, count, params);
  };
  driver.cuGraphBatchMemOpNodeSetParams = [](CUgraphNode node, const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
    if (waits(*params)) return CUDA_ERROR_INVALID_VALUE;
    return g_real.cuGraphBatchMemOpNodeSetParams(node, params);
  };
  driver.cuGraphExecBatchMemOpNodeSetParams = [](CUgraphExec exec, CUgraphNode node,
                                                 const CUDA_BATCH_MEM_OP_NODE_PARAMS* params) {
    if (waits(*params)) return CUDA_ERROR_INVALID_VALUE;
    return g_real.cuGraphExecBatchMemOpNodeSetParams(exec, node, params);
  };
  // A loop whose condition nobody ends.
  driver.cuGraphConditionalHandleCreate = [](CUgraphConditionalHandle* handle, CUgraph graph,
                                             CUcontext context, unsigned, unsigned flags) {
    return g_real.cuGraphConditionalHandleCreate(handle, graph, context, 0, flags);
  };
}

void follow_memory(worker::DriverApi& driver) {
  driver.cuMemAlloc_v2 = [](CUdeviceptr* address, size_t bytes) {
    const CUresult result = g_real.cuMemAlloc_v2(address, bytes);
    if (result == CUDA_SUCCESS) g_memory.insert(*address);
    return result;
  };
  driver.cuMemFree_v2 = [](CUdeviceptr address) {
    g_memory.erase(address);
    return g_real.cuMemFree_v2(address);
  };
  driver.cuMemAllocAsync = [](CUdeviceptr* address, size_t bytes, CUstream stream) {
    const CUresult result = g_real.cuMemAllocAsync(address, bytes, stream);
    if (result == CUDA_SUCCESS) g_memory.insert(*address);
    return result;
  };
  driver.cuMemAllocFromPoolAsync = [](CUdeviceptr* address, size_t bytes, CUmemoryPool pool,
                                      CUstream stream) {
    const CUresult result = g_real.cuMemAllocFromPoolAsync(address, bytes, pool, stream);
    if (result == CUDA_SUCCESS) g_memory.insert(*address);
    return result;
  };
  driver.cuMemAddressReserve = [](CUdeviceptr* address, size_t size, size_t alignment, CUdeviceptr wanted,
                                  unsigned long long flags) {
    const CUresult result = g_real.cuMemAddressReserve(address, size, alignment, wanted, flags);
    if (result == CUDA_SUCCESS) g_reserved.emplace(*address, size);
    return result;
  };
  driver.cuMemAddressFree = [](CUdeviceptr address, size_t size) {
    g_reserved.erase({address, size});
    return g_real.cuMemAddressFree(address, size);
  };
  driver.cuMemMap = [](CUdeviceptr address, size_t size, size_t offset, CUmemGenericAllocationHandle block,
                       unsigned long long flags) {
    const CUresult result = g_real.cuMemMap(address, size, offset, block, flags);
    if (result == CUDA_SUCCESS) g_mapped.emplace(address, size);
    return result;
  };
  driver.cuMemUnmap = [](CUdeviceptr address, size_t size) {
    g_mapped.erase({address, size});
    return g_real.cuMemUnmap(address, size);
  };
}

}  // namespace

void bound_driver(worker::DriverApi& driver) {
  g_real = driver;
  bound_code(driver);
  bound_launches(driver);
  bound_waits(driver);
  bound_graphs(driver);
  follow_memory(driver);
}

void free_memory() {
  for (const CUdeviceptr address : g_memory) g_real.cuMemFree_v2(address);
  for (const auto& [address, size] : g_mapped) g_real.cuMemUnmap(address, size);
  for (const auto& [address, size] : g_reserved) g_real.cuMemAddressFree(address, size);
  g_memory.clear();
  g_mapped.clear();
  g_reserved.clear();
  g_trusted.clear();
}

}  // namespace gpupool::fuzz
