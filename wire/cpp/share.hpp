// What a program passes from process to process to share memory or an event: a random token behind which the
// host keeps the driver's own handle, for sessions of one tenant only. In CUipcMemHandle and its relatives
// the token stands in their 64 bytes; where CUDA gives out a file descriptor, it is a file that holds the
// same.
#pragma once

#include <type_traits>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

enum class ShareKind : u32 { memory = 1, event = 2, allocation = 3, pool = 4, pool_pointer = 5 };

struct ShareToken {
  u8 bytes[16] = {};
};

inline constexpr u64 kShareMagic = 0x3130'4552'4148'5347;  // "GSHARE01"

struct ShareHandle {
  u64 magic = kShareMagic;
  ShareKind kind{};
  u32 reserved = 0;
  ShareToken token;
  u8 unused[32] = {};
};
static_assert(std::is_trivially_copyable_v<ShareHandle> && sizeof(ShareHandle) == 64);

}  // namespace gpupool::wire
