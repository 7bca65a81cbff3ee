// Tables of functions without names, which NVIDIA's own libraries ask for. There are none here, and saying so
// is what keeps those libraries whole: NVRTC 13 does without its table when it is refused, but crashes when
// nobody can be asked.
#include "hostd/softgpu/api/api.hpp"

namespace gpupool::softgpu {

GPUPOOL_CUDA CUresult cuGetExportTable(const void** table, const CUuuid* id) {
  return call_before_init([&] {
    require(table != nullptr && id != nullptr);
    *table = nullptr;
    fail(CUDA_ERROR_NOT_FOUND);
  });
}

}  // namespace gpupool::softgpu
