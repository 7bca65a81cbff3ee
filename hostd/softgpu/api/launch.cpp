// Kernel launches.
#include "hostd/softgpu/api/launch.hpp"

#include <unistd.h>

#include <cstring>

#include "hostd/softgpu/api/memory.hpp"
#include "hostd/softgpu/api/operations.hpp"

namespace gpupool::softgpu {

namespace {

CUresult result_of(Fault fault) {
  switch (fault) {
    case Fault::none:
      return CUDA_SUCCESS;
    case Fault::illegal_address:
      return CUDA_ERROR_ILLEGAL_ADDRESS;
    case Fault::misaligned_address:
      return CUDA_ERROR_MISALIGNED_ADDRESS;
    case Fault::illegal_instruction:
      return CUDA_ERROR_ILLEGAL_INSTRUCTION;
    case Fault::assertion:
      return CUDA_ERROR_ASSERT;
    case Fault::trap:
      return CUDA_ERROR_LAUNCH_FAILED;
    case Fault::out_of_shared:
      return CUDA_ERROR_ILLEGAL_ADDRESS;
  }
  return CUDA_ERROR_UNKNOWN;
}

void check_shape(const Function& function, const LaunchShape& shape) {
  const Dim3 &grid = shape.grid, &block = shape.block;
  require(grid.x != 0 && grid.y != 0 && grid.z != 0 && block.x != 0 && block.y != 0 && block.z != 0);
  require(grid.x <= 2147483647 && grid.y <= 65535 && grid.z <= 65535);
  require(block.x <= 1024 && block.y <= 1024 && block.z <= 64);
  const u64 threads = static_cast<u64>(block.x) * block.y * block.z;
  require(threads <= kMaxThreadsPerBlock);
  require(threads <= function.info().max_threads, CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES);
  require(shape.shared_bytes <= dynamic_shared_limit(function));
  if (!shape.cooperative) return;
  // Blocks that wait for each other all make progress: the engine runs as many in turn as occupancy says.
  const auto resident =
      static_cast<u64>(blocks_per_sm(function, static_cast<int>(threads), shape.shared_bytes)) *
      function.context->device->multiprocessors;
  require(static_cast<u64>(grid.x) * grid.y * grid.z <= resident, CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE);
}

// The packed buffer that `extra` names, instead of a pointer a parameter.
void copy_extra(void** extra, std::vector<u8>& parameters) {
  const void* buffer = nullptr;
  const size_t* size = nullptr;
  for (u32 i = 0; extra[i] != CU_LAUNCH_PARAM_END; i += 2) {
    require(i < 16);
    if (extra[i] == CU_LAUNCH_PARAM_BUFFER_POINTER)
      buffer = extra[i + 1];
    else if (extra[i] == CU_LAUNCH_PARAM_BUFFER_SIZE)
      size = static_cast<const size_t*>(extra[i + 1]);
    else
      fail(CUDA_ERROR_INVALID_VALUE);
  }
  require(size != nullptr && (buffer != nullptr || *size == 0));
  // Padding behind the last parameter may be there or not; a shorter buffer leaves parameters without a
  // value.
  require(*size <= round_up(parameters.size(), 16));
  std::memcpy(parameters.data(), buffer, std::min(*size, parameters.size()));
}

// Events that a launch records itself may complete as late as the kernel does (cuda.h on both attributes).
void record_events(std::span<const CUlaunchAttribute> attributes, CUstream stream) {
  for (const CUlaunchAttribute& attribute : attributes) {
    CUresult result = CUDA_SUCCESS;
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT)
      result = cuEventRecord(attribute.value.programmaticEvent.event, stream);
    if (attribute.id == CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT)
      result = cuEventRecord(attribute.value.launchCompletionEvent.event, stream);
    require(result == CUDA_SUCCESS, result);
  }
}

CUresult launch(CUfunction handle, const LaunchShape& shape, std::span<const CUlaunchAttribute> attributes,
                CUstream stream_handle, void** kernel_parameters, void** extra) {
  return call([&] {
    const auto stream = resolve_stream(stream_handle);
    // A kernel runs in its stream's context, whichever is current (measured on driver 580).
    const auto kernel = kernels().find(reinterpret_cast<CUkernel>(handle));
    const auto function = kernel != nullptr ? function_of(kernel, stream->context) : resolve_function(handle);
    require(function->context == stream->context, CUDA_ERROR_INVALID_HANDLE);
    LaunchShape final_shape = shape;
    read_attributes(attributes, final_shape);
    auto operation = make_launch(function, final_shape, kernel_parameters, extra);
    operation->attributes.assign(attributes.begin(), attributes.end());
    put_on_stream(stream, std::move(operation));
    record_events(attributes, stream_handle);
  });
}

}  // namespace

u32 dynamic_shared_limit(const Function& function) {
  const u32 fixed = function.info().static_shared_bytes;
  const u32 usual = fixed < kSharedPerBlock ? kSharedPerBlock - fixed : 0;
  const int raised = function.settings->max_dynamic_shared.load();
  return std::max(usual, static_cast<u32>(std::max(raised, 0)));
}

void read_attributes(std::span<const CUlaunchAttribute> attributes, LaunchShape& shape) {
  for (const CUlaunchAttribute& attribute : attributes) {
    const CUlaunchAttributeValue& value = attribute.value;
    switch (attribute.id) {
      // Hints, which change no result.
      case CU_LAUNCH_ATTRIBUTE_IGNORE:
      case CU_LAUNCH_ATTRIBUTE_ACCESS_POLICY_WINDOW:
      case CU_LAUNCH_ATTRIBUTE_SYNCHRONIZATION_POLICY:
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE:
      case CU_LAUNCH_ATTRIBUTE_PRIORITY:
      case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN_MAP:
      case CU_LAUNCH_ATTRIBUTE_MEM_SYNC_DOMAIN:
      case CU_LAUNCH_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      // Recorded after the launch, by record_events().
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_EVENT:
      case CU_LAUNCH_ATTRIBUTE_LAUNCH_COMPLETION_EVENT:
      // Allows overlap with the kernel before; not overlapping is allowed too.
      case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
        break;
      case CU_LAUNCH_ATTRIBUTE_COOPERATIVE:
        shape.cooperative = shape.cooperative || value.cooperative != 0;
        break;
      case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
        require(value.clusterDim.x == 1 && value.clusterDim.y == 1 && value.clusterDim.z == 1,
                CUDA_ERROR_INVALID_CLUSTER_SIZE);
        break;
      default:
        log_line("launch attribute %d is not supported", static_cast<int>(attribute.id));
        fail(CUDA_ERROR_NOT_SUPPORTED);
    }
  }
}

std::shared_ptr<KernelOperation> make_launch(std::shared_ptr<Function> function, const LaunchShape& shape,
                                             void** kernel_parameters, void** extra) {
  check_shape(*function, shape);
  const KernelInfo& info = function->info();
  auto operation = std::make_shared<KernelOperation>();
  operation->shape = shape;
  operation->parameters.resize(info.parameter_bytes);
  require(kernel_parameters == nullptr || extra == nullptr);
  if (extra != nullptr) {
    copy_extra(extra, operation->parameters);
  } else {
    require(kernel_parameters != nullptr || info.parameters.empty());
    for (u64 i = 0; i < info.parameters.size(); ++i) {
      require(kernel_parameters[i] != nullptr);
      std::memcpy(operation->parameters.data() + info.parameters[i].offset, kernel_parameters[i],
                  info.parameters[i].size);
    }
  }
  operation->function = std::move(function);
  operation->point_at_own_parameters();
  return operation;
}

void KernelOperation::point_at_own_parameters() {
  pointers.clear();
  for (const ParameterInfo& parameter : function->info().parameters)
    pointers.push_back(parameters.data() + parameter.offset);
}

CUresult KernelOperation::run(Context&) const {
  LaunchMemory memory;
  const LaunchResult result =
      run_kernel(*function->program, function->index, shape.grid, shape.block, shape.shared_bytes, parameters,
                 memory, engine_threads(), STDOUT_FILENO);
  if (result.fault != Fault::none)
    log_line("kernel %s faulted: %s", function->info().name.c_str(), result.detail.c_str());
  return result_of(result.fault);
}

GPUPOOL_CUDA CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                     unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                     unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                                     void** parameters, void** extra) {
  return launch(function, {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, false}, {},
                stream, parameters, extra);
}

GPUPOOL_CUDA CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                                unsigned int grid_z, unsigned int block_x,
                                                unsigned int block_y, unsigned int block_z,
                                                unsigned int shared_bytes, CUstream stream,
                                                void** parameters) {
  return launch(function, {{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, true}, {},
                stream, parameters, nullptr);
}

GPUPOOL_CUDA CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters,
                                       void** extra) {
  if (config == nullptr || (config->numAttrs != 0 && config->attrs == nullptr))
    return CUDA_ERROR_INVALID_VALUE;
  const LaunchShape shape{{config->gridDimX, config->gridDimY, config->gridDimZ},
                          {config->blockDimX, config->blockDimY, config->blockDimZ},
                          config->sharedMemBytes,
                          false};
  return launch(function, shape, {config->attrs, config->numAttrs}, config->hStream, parameters, extra);
}

GPUPOOL_CUDA CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  return call([&] {
    require(function != nullptr);
    auto operation = std::make_shared<HostOperation>();
    operation->parameters.fn = function;
    operation->parameters.userData = data;
    put_on_stream(resolve_stream(stream), std::move(operation));
  });
}

GPUPOOL_CUDA CUresult cuStreamAddCallback(CUstream stream, CUstreamCallback function, void* data,
                                          unsigned int flags) {
  return call([&] {
    require(function != nullptr && flags == 0);
    const auto target = resolve_stream(stream);
    require(!target->capturing.load(), CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    auto operation = std::make_shared<CallbackOperation>();
    operation->stream = stream;
    operation->callback = function;
    operation->data = data;
    put_on_stream(target, std::move(operation));
  });
}

}  // namespace gpupool::softgpu
