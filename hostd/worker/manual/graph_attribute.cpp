// Attributes of kernel nodes.
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {
namespace {

// Attributes of kernel nodes that hold no handle (cuda.h, CUkernelNodeAttrID).
bool is_kernel_attribute(u32 attribute) {
  switch (attribute) {
    case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
    case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
    case CU_LAUNCH_ATTRIBUTE_PRIORITY:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
    case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_CLUSTER_DIMENSION:
    case CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE:
    case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
    case CU_LAUNCH_ATTRIBUTE_NVLINK_UTIL_CENTRIC_SCHEDULING:
      return true;
    default:
      return false;
  }
}

}  // namespace

// node, u32 attribute -> CUkernelNodeAttrValue.
CUresult handle_cuGraphKernelNodeGetAttribute(Worker& worker, Request& request) {
  const CUgraphNode* node = worker.graph_nodes.find(request.in.get<wire::Handle>());
  const auto attribute = request.in.get<u32>();
  if (node == nullptr || !is_kernel_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  CUkernelNodeAttrValue value{};
  const CUresult result =
      worker.driver.cuGraphKernelNodeGetAttribute(*node, static_cast<CUkernelNodeAttrID>(attribute), &value);
  if (result == CUDA_SUCCESS) request.out->put(value);
  return result;
}

CUresult handle_cuGraphKernelNodeSetAttribute(Worker& worker, Request& request) {
  const CUgraphNode* node = worker.graph_nodes.find(request.in.get<wire::Handle>());
  const auto attribute = request.in.get<u32>();
  auto value = request.in.get<CUkernelNodeAttrValue>();
  if (attribute == CU_LAUNCH_ATTRIBUTE_DEVICE_UPDATABLE_KERNEL_NODE)
    value.deviceUpdatableKernelNode.devNode = nullptr;  // a result
  if (node == nullptr || !is_kernel_attribute(attribute)) return CUDA_ERROR_INVALID_VALUE;
  return worker.driver.cuGraphKernelNodeSetAttribute(*node, static_cast<CUkernelNodeAttrID>(attribute),
                                                     &value);
}

}  // namespace gpupool::worker
