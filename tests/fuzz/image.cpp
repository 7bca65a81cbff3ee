// Target: the measuring of images. It must never look beyond the bytes that it was given.
#include "wire/cpp/image.hpp"

#include <cstdlib>
#include <cstring>
#include <memory>

using namespace gpupool;

extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  const std::unique_ptr<u8[]> image(new u8[size]);  // ends where the sanitizer watches
  if (size != 0) std::memcpy(image.get(), data, size);
  const wire::ImageExtent extent = wire::measure_image(image.get(), size);
  if (extent.bytes > size) std::abort();
  if ((extent.kind == wire::ImageKind::invalid) != (extent.bytes == 0)) std::abort();
  return 0;
}
