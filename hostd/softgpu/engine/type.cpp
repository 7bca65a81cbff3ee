#include "hostd/softgpu/engine/type.hpp"

#include <array>

namespace gpupool::softgpu::engine {
namespace {

struct TypeRow {
  std::string_view name;
  u32 bytes;
};

constexpr std::array<TypeRow, 26> kTypes{{
    {"", 0},    {"pred", 0},  {"b8", 1},    {"b16", 2},    {"b32", 4},    {"b64", 8},  {"b128", 16},
    {"u8", 1},  {"u16", 2},   {"u32", 4},   {"u64", 8},    {"s8", 1},     {"s16", 2},  {"s32", 4},
    {"s64", 8}, {"f16", 2},   {"f16x2", 4}, {"bf16", 2},   {"bf16x2", 4}, {"tf32", 4}, {"f32", 4},
    {"f64", 8}, {"u16x2", 4}, {"s16x2", 4}, {"e4m3x2", 2}, {"e5m2x2", 2},
}};
static_assert(kTypes.size() == static_cast<size_t>(Type::e5m2x2) + 1);

}  // namespace

std::optional<Type> type_of(std::string_view word) {
  for (size_t i = 1; i < kTypes.size(); ++i)
    if (kTypes[i].name == word) return static_cast<Type>(i);
  return std::nullopt;
}

std::string_view type_name(Type type) {
  return kTypes[static_cast<size_t>(type)].name;
}

u32 type_bytes(Type type) {
  return kTypes[static_cast<size_t>(type)].bytes;
}

bool is_signed(Type type) {
  return type >= Type::s8 && type <= Type::s64;
}

bool is_integer(Type type) {
  return type >= Type::u8 && type <= Type::s64;
}

bool is_bits(Type type) {
  return type >= Type::b8 && type <= Type::b128;
}

bool is_float(Type type) {
  return (type >= Type::f16 && type <= Type::f64) || type == Type::e4m3x2 || type == Type::e5m2x2;
}

std::string_view space_name(Space space) {
  constexpr std::array<std::string_view, 7> names{"reg",   "global", "const",  "shared",
                                                  "local", "param",  "generic"};
  return names[static_cast<size_t>(space)];
}

}  // namespace gpupool::softgpu::engine
