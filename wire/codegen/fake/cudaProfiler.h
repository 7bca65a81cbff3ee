/* NVIDIA's wheel brings cudaProfilerTypedefs.h but not the header it includes. */
#include "cuda.h"
typedef int CUoutput_mode;
