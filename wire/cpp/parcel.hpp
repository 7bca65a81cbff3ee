// A descriptor on its way from client to worker, over the control socket of a session on shared memory. It
// travels as SCM_RIGHTS with this frame, before the slot that names its id. Nothing else goes that way.
#pragma once

#include <type_traits>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kParcelMagic = 0x4c43'5250;  // "PRCL"

struct Parcel {
  u32 magic = kParcelMagic;
  u32 reserved = 0;
  u64 id = 0;  // the client's choice; never used twice in a session
};
static_assert(std::is_trivially_copyable_v<Parcel> && sizeof(Parcel) == 16);

}  // namespace gpupool::wire
