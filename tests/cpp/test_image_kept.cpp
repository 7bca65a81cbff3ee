#include <doctest/doctest.h>

#include "guest/runtime/manual/image_kept.hpp"

namespace gpupool::guest {

TEST_CASE("images are kept over a network, and elsewhere only when that is asked for") {
  CHECK(keeps_images(nullptr, "tcp://gpu.example:7000", false));
  CHECK(keeps_images("", "tls://10.0.0.1:7000", false));
  CHECK(keeps_images("auto", "tls://[fd00::1]:7000", false));
  for (const char* here : {"tcp://127.0.0.1:7000", "tls://localhost:7000", "tcp://[::1]:7000",
                           "vsock://2:7000", "unix:/run/gpupool/hostd.sock", ""}) {
    CHECK_FALSE(keeps_images(nullptr, here, false));
    CHECK(keeps_images("on", here, false));
    CHECK_FALSE(keeps_images("on", here, true));
  }
  CHECK_FALSE(keeps_images("off", "tcp://gpu.example:7000", false));
  CHECK_FALSE(keeps_images(nullptr, nullptr, false));
}

}  // namespace gpupool::guest
