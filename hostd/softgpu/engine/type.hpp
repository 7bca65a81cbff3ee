// The operand types of PTX instructions (PTX ISA 9.0, chapter 5.2) and what the rest of the engine asks about
// them.
#pragma once

#include <optional>
#include <string_view>

#include "wire/cpp/types.hpp"

namespace gpupool::softgpu::engine {

enum class Type : u8 {
  none,
  pred,
  b8,
  b16,
  b32,
  b64,
  b128,
  u8,
  u16,
  u32,
  u64,
  s8,
  s16,
  s32,
  s64,
  f16,
  f16x2,
  bf16,
  bf16x2,
  tf32,
  f32,
  f64,
  u16x2,
  s16x2,
  e4m3x2,
  e5m2x2,
};

// "f32" -> Type::f32; nothing for a word that names no type.
std::optional<Type> type_of(std::string_view word);
std::string_view type_name(Type type);

// Bytes of one value; 0 for predicates.
u32 type_bytes(Type type);
bool is_signed(Type type);
bool is_integer(Type type);  // u, s: not bits
bool is_bits(Type type);
bool is_float(Type type);  // any floating point type, packed ones too

// State spaces of PTX. `param` is the parameter buffer of a kernel; the parameters of device functions and of
// calls live in the thread's local memory.
enum class Space : u8 { reg, global, constant, shared, local, param, generic };

std::string_view space_name(Space space);

// Windows of the generic address space that are not plain memory. Chosen above every address a process can
// map on x86-64 (47 bits), so that a generic address is told apart by its upper bits.
inline constexpr u64 kSharedWindow = 0x0001'0000'0000'0000;
inline constexpr u64 kLocalWindow = 0x0001'0001'0000'0000;
inline constexpr u64 kParamWindow = 0x0001'0002'0000'0000;
inline constexpr u64 kWindowSpan = 0x0000'0001'0000'0000;

inline constexpr u32 kWarpLanes = 32;

}  // namespace gpupool::softgpu::engine
