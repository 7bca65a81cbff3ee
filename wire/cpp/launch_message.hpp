// A kernel launch on the wire: a header, its attributes, then the packed parameters as a counted run of bytes
// (the encoding of guest/runtime/message.hpp, so that wire::Reader reads it). It lies in the slot's payload,
// or in the bulk piece when it does not fit there. Every launch function is sent as this one message.
#pragma once

#include <type_traits>

#include "wire/cpp/layout.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::wire {

enum LaunchFlag : u16 {
  kLaunchCooperative = 1 << 0,  // cuLaunchCooperativeKernel
};

struct LaunchHeader {
  Handle function;
  u32 grid[3];
  u32 block[3];
  u32 shared_bytes;
  u16 attribute_count;
  u16 flags;  // LaunchFlag
};
static_assert(std::is_trivially_copyable_v<LaunchHeader> && sizeof(LaunchHeader) == 40);

// A CUlaunchAttribute. `value` is the start of the driver's union, except that an event's place holds its
// Handle. The largest member in use is CUaccessPolicyWindow, 28 bytes.
struct LaunchAttribute {
  u32 id;
  u8 value[28];
};
static_assert(std::is_trivially_copyable_v<LaunchAttribute> && sizeof(LaunchAttribute) == 32);

inline constexpr u32 kMaxLaunchAttributes = 32;  // cuda.h 13.0 knows 16 of them
inline constexpr u32 kMaxParameterBytes =
    32764;  // the most a kernel can take, compute capability 7.0 and later

// A function's description, in the answer to a look-up and to function_describe: i32 result, and if that is
// CUDA_SUCCESS an array of its parameters ({u32 offset, u32 size} each); i32 result, and if that is
// CUDA_SUCCESS and a device was named an array of i32, the CUfunction_attribute values there. The first
// result is NOT_READY when the answer has no room: ask again with kMaxDescriptionBytes.
inline constexpr u64 kMaxParameters = 8192;
inline constexpr u64 kMaxDescriptionBytes = kMaxParameters * 8 + 256;

// How many functions one functions_describe may name: what fits a slot's payload. Its answer gets the room
// beside.
inline constexpr u64 kMaxDescribed = 24;
inline constexpr u64 kDescribedBytes = 16 * 1024;

// Bytes of the whole message.
constexpr u64 launch_message_bytes(u64 attributes, u64 parameter_bytes) {
  return sizeof(LaunchHeader) + attributes * sizeof(LaunchAttribute) + sizeof(u64) + parameter_bytes;
}

}  // namespace gpupool::wire
