// MD2 (RFC 1319) and HMAC (RFC 2104) over it, for the handshake with NVIDIA's runtime. Not for protecting
// anything.
#pragma once

#include <array>
#include <span>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

using Md2Digest = std::array<u8, 16>;

Md2Digest md2(std::span<const u8> message);
Md2Digest hmac_md2(std::span<const u8> key, std::span<const u8> message);

}  // namespace gpupool::guest
