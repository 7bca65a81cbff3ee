// Green contexts. Resources and descriptors are the driver's structures, kept here and named by number.
#include <cstring>
#include <map>
#include <vector>

#include "hostd/worker/manual/context.hpp"
#include "wire/cpp/resource_message.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {
namespace {

// Neither has an end in the driver's interface, so a session may not make more than these.
constexpr u64 kMaxKept = 65536;
constexpr u64 kMaxDescriptions = 4096;
constexpr u64 kMaxGreen = 256;  // alive at a time

std::vector<CUdevResource> g_resources;                    // number n is at n - 1
std::map<std::vector<u64>, CUdevResourceDesc> g_by_parts;  // the same parts make the same descriptor
std::vector<CUdevResourceDesc> g_descriptions;

// The number of a structure: the one it has already, byte by byte, or a new one.
CUresult name(const CUdevResource& resource, wire::ResourceInfo& info) {
  info = {};
  info.type = static_cast<u32>(resource.type);
  if (resource.type == CU_DEV_RESOURCE_TYPE_INVALID) return CUDA_SUCCESS;
  std::memcpy(info.external, resource._oversize, sizeof info.external);
  for (u64 i = 0; i < g_resources.size(); ++i)
    if (std::memcmp(&g_resources[i], &resource, sizeof resource) == 0) {
      info.number = i + 1;
      return CUDA_SUCCESS;
    }
  if (g_resources.size() >= kMaxKept) return CUDA_ERROR_OUT_OF_MEMORY;
  g_resources.push_back(resource);
  info.number = g_resources.size();
  return CUDA_SUCCESS;
}

const CUdevResource* resource_at(u64 number) {
  return number == 0 || number > g_resources.size() ? nullptr : &g_resources[number - 1];
}

CUresult answer(Request& request, CUresult result, const CUdevResource& resource) {
  wire::ResourceInfo info;
  if (result == CUDA_SUCCESS) result = name(resource, info);
  if (result == CUDA_SUCCESS) request.out->put(info);
  return result;
}

CUdevResourceType read_type(Request& request) {
  return static_cast<CUdevResourceType>(request.in.get_enum<u32>(CU_DEV_RESOURCE_TYPE_SM));
}

}  // namespace

// i32 device, u32 type -> wire::ResourceInfo.
CUresult handle_cuDeviceGetDevResource(Worker& worker, Request& request) {
  const CUdevice device = device_at(worker, request.in.get<i32>());
  const CUdevResourceType type = read_type(request);
  request.in.finish();
  if (worker.driver.cuDeviceGetDevResource == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUdevResource resource{};
  const CUresult result = worker.driver.cuDeviceGetDevResource(device, &resource, type);
  return answer(request, result, resource);
}

// wire::Handle context, green or not, u32 type -> wire::ResourceInfo.
CUresult handle_cuCtxGetDevResource(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const CUdevResourceType type = read_type(request);
  request.in.finish();
  const CUcontext context = find_context(worker, handle);
  if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
  if (worker.driver.cuCtxGetDevResource == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUdevResource resource{};
  const auto green = worker.green_contexts.find(handle.index());
  const CUresult result =
      green == worker.green_contexts.end()
          ? worker.driver.cuCtxGetDevResource(context, &resource, type)
          : worker.driver.cuGreenCtxGetDevResource(green->second.context, &resource, type);
  return answer(request, result, resource);
}

// u64 resource, u32 groups, u32 remaining, u32 flags, u32 minimum -> u32 groups, wire::ResourceInfo groups[],
// wire::ResourceInfo remaining. No groups wanted: only how many there would be.
CUresult handle_cuDevSmResourceSplitByCount(Worker& worker, Request& request) {
  const auto number = request.in.get<u64>();
  const auto wanted = request.in.get<u32>();
  const auto want_rest = request.in.get_enum<u32>(1);
  const auto flags = request.in.get<u32>();
  const auto minimum = request.in.get<u32>();
  request.in.finish();
  if (wanted > wire::kMaxResources) throw wire::ProtocolError("too many groups of multiprocessors");
  const CUdevResource* found = resource_at(number);
  if (found == nullptr) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
  if (worker.driver.cuDevSmResourceSplitByCount == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  const CUdevResource input = *found;
  std::vector<CUdevResource> groups(wanted);
  CUdevResource rest{};
  unsigned int count = wanted;
  const CUresult result =
      worker.driver.cuDevSmResourceSplitByCount(wanted == 0 ? nullptr : groups.data(), &count, &input,
                                                want_rest != 0 ? &rest : nullptr, flags, minimum);
  if (result != CUDA_SUCCESS) return result;
  std::vector<wire::ResourceInfo> answers(wanted < count ? wanted : count);
  for (u64 i = 0; i < answers.size(); ++i)
    if (const CUresult named = name(groups[i], answers[i]); named != CUDA_SUCCESS) return named;
  wire::ResourceInfo rest_info;
  if (const CUresult named = name(rest, rest_info); named != CUDA_SUCCESS) return named;
  request.out->put<u32>(count);
  request.out->put_array(answers.data(), answers.size());
  request.out->put(rest_info);
  return CUDA_SUCCESS;
}

// u64 resources[] -> u64 descriptor.
CUresult handle_cuDevResourceGenerateDesc(Worker& worker, Request& request) {
  const std::vector<u64> numbers = request.in.get_array<u64>(wire::kMaxResources);
  request.in.finish();
  std::vector<CUdevResource> resources;
  for (const u64 number : numbers) {
    const CUdevResource* resource = resource_at(number);
    if (resource == nullptr) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
    resources.push_back(*resource);
  }
  if (worker.driver.cuDevResourceGenerateDesc == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUdevResourceDesc& description = g_by_parts[numbers];
  if (description == nullptr) {
    if (g_descriptions.size() >= kMaxDescriptions) return CUDA_ERROR_OUT_OF_MEMORY;
    const CUresult result = worker.driver.cuDevResourceGenerateDesc(
        &description, resources.data(), static_cast<unsigned int>(resources.size()));
    if (result != CUDA_SUCCESS) {
      g_by_parts.erase(numbers);
      return result;
    }
    g_descriptions.push_back(description);
  }
  for (u64 i = 0; i < g_descriptions.size(); ++i)
    if (g_descriptions[i] == description) request.out->put<u64>(i + 1);
  return CUDA_SUCCESS;
}

// wire::Handle of the new context, wire::Handle of the primary context, u64 descriptor, i32 device, u32 flags
// -> what describe_context() writes.
CUresult handle_cuGreenCtxCreate(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  const auto owner = request.in.get<wire::Handle>();
  const auto number = request.in.get<u64>();
  const CUdevice device = device_at(worker, request.in.get<i32>());
  const auto flags = request.in.get<u32>();
  request.in.finish();
  // What is made in a green context outlives it: its owner must outlive both.
  if (!is_primary(find_context(worker, owner)))
    throw wire::ProtocolError("a green context of no primary one");
  if (worker.green_contexts.size() >= kMaxGreen) return CUDA_ERROR_OUT_OF_MEMORY;
  if (number == 0 || number > g_descriptions.size()) return CUDA_ERROR_INVALID_VALUE;
  if (worker.driver.cuGreenCtxCreate == nullptr) return CUDA_ERROR_NOT_SUPPORTED;
  CUgreenCtx green = nullptr;
  CUresult result = worker.driver.cuGreenCtxCreate(&green, g_descriptions[number - 1], device, flags);
  if (result != CUDA_SUCCESS) return result;
  CUcontext context = nullptr;
  const KeepCurrent keep(worker.driver);
  result = worker.driver.cuCtxFromGreenCtx(&context, green);
  if (result == CUDA_SUCCESS) result = worker.driver.cuCtxSetCurrent(context);
  if (result != CUDA_SUCCESS) {
    worker.driver.cuGreenCtxDestroy(green);
    return result;
  }
  put_context(worker, handle, context);
  worker.green_contexts[handle.index()] = {green, owner.index()};
  describe_context(worker.driver, *request.out);
  return CUDA_SUCCESS;
}

// wire::Handle.
CUresult handle_cuGreenCtxDestroy(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  const auto found = worker.green_contexts.find(handle.index());
  if (find_context(worker, handle) == nullptr || found == worker.green_contexts.end())
    return CUDA_ERROR_INVALID_CONTEXT;
  const CUgreenCtx green = found->second.context;
  worker.green_contexts.erase(found);
  forget_context(worker, handle);
  drop_modules(worker, handle.index());  // it has none: what kernels were resolved to there
  worker.context_changed = true;
  const CUresult result = worker.driver.cuCtxSetCurrent(nullptr);
  return result == CUDA_SUCCESS ? worker.driver.cuGreenCtxDestroy(green) : result;
}

}  // namespace gpupool::worker
