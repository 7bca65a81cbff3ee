/* Versions of the toy API, as NVIDIA's header of this name gives them. */
#ifndef GPUPOOL_TOY_TYPEDEFS_H
#define GPUPOOL_TOY_TYPEDEFS_H
#include "cuda.h"
typedef CUresult (*PFN_cuToyInit_v2000)(unsigned int flags);
typedef CUresult (*PFN_cuToyFillAsync_v3020)(CUdeviceptr dst, unsigned char value, size_t bytes, CUstream hStream);
typedef CUresult (*PFN_cuToyFillAsync_v7000_ptsz)(CUdeviceptr dst, unsigned char value, size_t bytes,
                                                  CUstream hStream);
#endif
