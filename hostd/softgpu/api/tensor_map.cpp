// Tensor maps need compute capability 9.0: exported, so that programs which look for them find an answer.
#include "hostd/softgpu/api/api.hpp"

namespace gpupool::softgpu {

GPUPOOL_CUDA CUresult cuTensorMapEncodeTiled(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                             const cuuint64_t*, const cuuint64_t*, const cuuint32_t*,
                                             const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                                             CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

GPUPOOL_CUDA CUresult cuTensorMapEncodeIm2col(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*,
                                              const cuuint64_t*, const cuuint64_t*, const int*, const int*,
                                              cuuint32_t, cuuint32_t, const cuuint32_t*,
                                              CUtensorMapInterleave, CUtensorMapSwizzle,
                                              CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

GPUPOOL_CUDA CUresult cuTensorMapReplaceAddress(CUtensorMap*, void*) {
  return CUDA_ERROR_NOT_SUPPORTED;
}

}  // namespace gpupool::softgpu
