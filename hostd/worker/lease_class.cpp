#include "hostd/worker/lease_class.hpp"

namespace gpupool::worker {

LeaseClass lease_class(wire::Function function) {
  using enum wire::Function;
  switch (function) {
    case gl_batch:
    case cuLaunchKernel:
    case cuGraphLaunch:
    case cuGraphUpload:
    case cuLaunchHostFunc:
    case cuMemcpyHtoDAsync_v2:
    case cuMemcpyDtoHAsync_v2:
    case cuMemcpyDtoDAsync_v2:
    case cuMemcpyPeerAsync:
    case cuMemcpy3DAsync_v2:
    case cuMemcpy3DPeerAsync:
    case cuMemsetD8Async:
    case cuMemsetD16Async:
    case cuMemsetD32Async:
    case cuMemsetD2D8Async:
    case cuMemsetD2D16Async:
    case cuMemsetD2D32Async:
    case cuStreamBatchMemOp_v2:
    case cuStreamWaitValue32_v2:
    case cuStreamWaitValue64_v2:
    case cuStreamWriteValue32_v2:
    case cuStreamWriteValue64_v2:
      return LeaseClass::submits;

    case stream_mark:
    case cuEventRecordWithFlags:
    case cuStreamWaitEvent:
      return LeaseClass::stream;

    case session_devices:
    case window_register:
    case ping:
    case function_describe:
    case fault_check:
    case stream_poke:
    case cuEventCreate:
    case cuFuncGetAttribute:
    case cuKernelGetAttribute:
    case cuLibraryGetGlobal:
    case cuLibraryGetKernel:
    case cuLibraryLoadData:
    case cuMemAlloc_v2:
    case cuMemGetAllocationGranularity:
    case cuMemGetInfo_v2:
    case cuModuleGetFunction:
    case cuModuleGetGlobal_v2:
    case cuModuleLoadDataEx:
    case cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags:
    case cuStreamCreateWithPriority:
      return LeaseClass::passes;

    default:
      return LeaseClass::ordered;
  }
}

bool needs_mark(wire::Function function, bool answered) {
  using enum wire::Function;
  return function == cuStreamBeginCapture_v2 || function == cuStreamBeginCaptureToGraph ||
         function == cuStreamDestroy_v2 || (function == cuStreamWaitEvent && answered);
}

}  // namespace gpupool::worker
