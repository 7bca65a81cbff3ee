// Target: what the software GPU reads of a guest's image: the container, its compressions, the PTX text. The
// worker has measured the image before the driver sees it, and so does this.
#include <cstring>
#include <memory>
#include <string>

#include "hostd/softgpu/engine/engine.hpp"
#include "wire/cpp/image.hpp"

using namespace gpupool;

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  // The worker's copy of an image is padded with zeroes (manual/module_image.cpp): text ends there at the
  // latest.
  const std::unique_ptr<u8[]> image(new u8[size + 16]());
  if (size != 0) std::memcpy(image.get(), data, size);
  if (wire::measure_image(image.get(), size + 1).kind == wire::ImageKind::invalid) return 0;
  std::string ptx;
  std::string error;
  if (softgpu::find_ptx(image.get(), 90, ptx, error)) softgpu::load_program(ptx, error);
  return 0;
}
