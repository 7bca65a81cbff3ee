/* A driver API of ten functions, in the style of NVIDIA's header, for the tests of the generator. */
#ifndef GPUPOOL_TOY_CUDA_H
#define GPUPOOL_TOY_CUDA_H
#include <stdint.h>
#include <stdlib.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUmod_st *CUmodule;
typedef struct CUgraph_st *CUgraph;
typedef struct CUgraphNode_st *CUgraphNode;

typedef enum CUresult_enum {
  CUDA_SUCCESS = 0,
  CUDA_ERROR_INVALID_VALUE = 1,
  CUDA_ERROR_OUT_OF_MEMORY = 2,
  CUDA_ERROR_NOT_INITIALIZED = 3,
  CUDA_ERROR_INVALID_DEVICE = 101,
  CUDA_ERROR_INVALID_HANDLE = 400,
  CUDA_ERROR_NOT_SUPPORTED = 801
} CUresult;

typedef enum CUtoyLimit_enum { CU_TOY_LIMIT_STACK = 0, CU_TOY_LIMIT_HEAP = 2 } CUtoyLimit;

typedef struct CUtoyEdge_st {
  unsigned char port;
  unsigned char reserved[7];
} CUtoyEdge;

typedef struct CUtoyCopy_st {
  size_t bytes;
  const void *host;
} CUtoyCopy;

CUresult cuToyInit(unsigned int flags);
CUresult cuToyDeviceLimit(size_t *value, CUtoyLimit limit, CUdevice dev);
CUresult cuToyFill(CUdeviceptr dst, unsigned char value, size_t bytes);
CUresult cuToyFillAsync(CUdeviceptr dst, unsigned char value, size_t bytes, CUstream hStream);
CUresult cuToyFillAsync_ptsz(CUdeviceptr dst, unsigned char value, size_t bytes, CUstream hStream);
CUresult cuToyFind(CUdeviceptr *dptr, size_t *bytes, CUmodule hmod, const char *name);
CUresult cuToyGraphCreate(CUgraph *phGraph, unsigned int flags);
CUresult cuToyGraphDestroy(CUgraph hGraph);
CUresult cuToyGraphLink(CUgraph hGraph, const CUgraphNode *from, const CUgraphNode *to, const CUtoyEdge *edges,
                        size_t count);
CUresult cuToyGraphNodes(CUgraph hGraph, CUgraphNode *nodes, size_t *count);
CUresult cuToyCopy(const CUtoyCopy *copy);

#ifdef __cplusplus
}
#endif
#endif
