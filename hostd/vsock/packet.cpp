#include "hostd/vsock/packet.hpp"

#include <algorithm>
#include <cstring>

namespace gpupool::vsock {

size_t gather(std::span<const iovec> parts, void* bytes, size_t count) {
  size_t done = 0;
  for (const iovec& part : parts) {
    const size_t here = std::min(part.iov_len, count - done);
    if (here == 0) break;
    std::memcpy(static_cast<std::byte*>(bytes) + done, part.iov_base, here);
    done += here;
  }
  return done;
}

size_t scatter(std::span<const iovec> parts, const void* bytes, size_t count) {
  size_t done = 0;
  for (const iovec& part : parts) {
    const size_t here = std::min(part.iov_len, count - done);
    if (here == 0) break;
    std::memcpy(part.iov_base, static_cast<const std::byte*>(bytes) + done, here);
    done += here;
  }
  return done;
}

size_t cut(std::span<const iovec> parts, size_t skip, size_t count, std::vector<iovec>& out) {
  size_t done = 0;
  for (const iovec& part : parts) {
    const size_t skipped = std::min(skip, part.iov_len);
    skip -= skipped;
    const size_t here = std::min(part.iov_len - skipped, count - done);
    if (here == 0) continue;
    out.push_back({static_cast<std::byte*>(part.iov_base) + skipped, here});
    done += here;
  }
  return done;
}

}  // namespace gpupool::vsock
