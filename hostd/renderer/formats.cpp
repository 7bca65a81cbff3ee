#include "hostd/renderer/formats.hpp"

#include <algorithm>

namespace gpupool::renderer {
namespace {

constexpr u32 kMostPixels = 1u << 16;  // along one side; OpenGL implementations have 16384 to 32768
constexpr u32 kMostLayers = 1u << 14;
constexpr u32 kMostLevels = 16;
constexpr u32 kMostSamples = 32;
constexpr u32 kWidest = 16;  // bytes of a pixel whose format is not listed: the widest there is, but doubles

struct Block {
  u32 width, height, bytes;
};

// Formats from one number to another that repeat `bytes` as many times as `step` says: R, RG, RGB, RGBA.
struct Run {
  u32 first, last, bytes;
  bool grows;  // by component, every four numbers anew
};

constexpr Run kRuns[] = {
    {1, 4, 4, false},     {5, 7, 2, false},     {8, 8, 4, false},     {9, 11, 1, false},
    {12, 13, 2, false},   {14, 15, 2, false},   {16, 16, 2, false},   {17, 22, 4, false},
    {23, 23, 1, false},   {24, 27, 8, true},    {28, 31, 4, true},    {32, 35, 4, true},
    {36, 39, 4, true},    {40, 43, 4, true},    {44, 47, 4, true},    {48, 51, 2, true},
    {52, 55, 2, true},    {56, 59, 2, true},    {60, 63, 2, true},    {64, 67, 1, true},
    {68, 68, 4, false},   {69, 72, 1, true},    {74, 77, 1, true},    {82, 85, 1, true},
    {87, 90, 4, true},    {91, 94, 2, true},    {95, 95, 1, false},   {96, 96, 2, false},
    {97, 97, 3, false},   {98, 104, 4, false},  {117, 118, 2, false}, {119, 119, 4, false},
    {120, 120, 2, false}, {121, 121, 4, false}, {122, 122, 2, false}, {123, 125, 4, false},
    {126, 126, 8, false}, {128, 129, 4, false}, {130, 130, 1, false}, {131, 134, 4, false},
    {135, 135, 2, false}, {136, 137, 4, false}, {138, 138, 8, false}, {139, 139, 1, false},
    {140, 140, 4, false}, {141, 142, 2, false}, {147, 148, 1, false}, {149, 149, 2, false},
    {150, 150, 1, false}, {151, 152, 2, false}, {153, 153, 4, false}, {154, 156, 2, false},
    {157, 157, 4, false}, {158, 158, 2, false}, {159, 160, 4, false}, {161, 161, 8, false},
    {162, 162, 4, false}, {172, 176, 4, false}, {177, 180, 1, true},  {181, 184, 1, true},
    {185, 188, 2, true},  {189, 192, 2, true},  {193, 196, 4, true},  {197, 200, 4, true},
    {201, 203, 1, false}, {204, 204, 2, false}, {205, 207, 1, false}, {208, 208, 2, false},
    {209, 211, 2, false}, {212, 212, 4, false}, {213, 215, 2, false}, {216, 216, 4, false},
    {217, 219, 4, false}, {220, 220, 8, false}, {221, 223, 4, false}, {224, 224, 8, false},
    {225, 225, 4, false}, {229, 233, 4, false}, {234, 238, 8, false}, {253, 253, 4, false},
    {254, 254, 2, false}, {308, 308, 4, false}, {311, 311, 2, false}, {312, 312, 1, false},
};

constexpr Block block_of(u32 format) {
  if ((format >= 105 && format <= 106) || (format >= 109 && format <= 110)) return {4, 4, 8};  // DXT1
  if (format >= 107 && format <= 112) return {4, 4, 16};                                       // DXT3, DXT5
  if (format == 113 || format == 114 || format == 143 || format == 144) return {4, 4, 8};
  if (format == 115 || format == 116 || format == 145 || format == 146) return {4, 4, 16};
  if (format == 226 || (format >= 269 && format <= 272)) return {4, 4, 8};  // ETC1, ETC2 without alpha
  if (format == 275 || format == 276) return {4, 4, 8};
  if ((format >= 255 && format <= 258) || (format >= 273 && format <= 278)) return {4, 4, 16};
  if (format >= 279 && format <= 306) return {4, 4, 16};  // ASTC: the smallest of its blocks
  for (const Run& run : kRuns)
    if (format >= run.first && format <= run.last)
      return {1, 1, run.grows ? run.bytes * (format - run.first + 1) : run.bytes};
  return {1, 1, kWidest};
}

constexpr u32 at_level(u32 size, u32 level) {
  return std::max<u32>(size >> level, 1);
}

u64 plane_bytes(const Block& block, u32 width, u32 height) {
  const u64 across = (u64{width} + block.width - 1) / block.width;
  const u64 down = (u64{height} + block.height - 1) / block.height;
  return across * down * block.bytes;
}

bool is_sane(const Shape& shape) {
  const auto target = static_cast<Target>(shape.target);
  if (shape.target >= kTargets || shape.width == 0 || shape.height == 0 || shape.depth == 0) return false;
  if (target == Target::buffer)
    return shape.height == 1 && shape.depth == 1 && shape.array_size <= 1 && shape.last_level == 0 &&
           shape.samples <= 1;
  if (std::max({shape.width, shape.height, shape.depth}) > kMostPixels) return false;
  if (shape.array_size > kMostLayers || shape.last_level >= kMostLevels || shape.samples > kMostSamples)
    return false;
  if (target != Target::three && shape.depth != 1) return false;
  if ((target == Target::one || target == Target::one_array) && shape.height != 1) return false;
  const bool layered = target == Target::one_array || target == Target::two_array ||
                       target == Target::cube_array || target == Target::cube;
  if (!layered && shape.array_size > 1) return false;
  if (target == Target::cube && shape.array_size != 6) return false;
  return (at_level(std::max({shape.width, shape.height, shape.depth}), shape.last_level)
          << shape.last_level) <= kMostPixels;
}

}  // namespace

std::optional<u64> device_bytes(const Shape& shape) {
  if (!is_sane(shape)) return std::nullopt;
  if (static_cast<Target>(shape.target) == Target::buffer) return shape.width;
  const Block block = block_of(shape.format);
  u64 sum = 0;
  for (u32 level = 0; level <= shape.last_level; ++level)
    sum += plane_bytes(block, at_level(shape.width, level), at_level(shape.height, level)) *
           at_level(shape.depth, level);
  return sum * std::max<u32>(shape.array_size, 1) * std::max<u32>(shape.samples, 1);
}

bool holds(const Shape& shape, u32 level, const Box& box) {
  if (level > shape.last_level) return false;
  const auto inside = [](u32 from, u32 count, u32 size) { return from <= size && count <= size - from; };
  const auto target = static_cast<Target>(shape.target);
  u32 height = at_level(shape.height, level);
  u32 layers = std::max<u32>(shape.array_size, 1);
  if (target == Target::three) layers = at_level(shape.depth, level);
  // A row of layers: gallium gives one either as y or as z.
  if (target == Target::one_array) height = layers;
  return inside(box.x, box.width, at_level(shape.width, level)) && inside(box.y, box.height, height) &&
         inside(box.z, box.depth, layers);
}

u64 tight_bytes(const Shape& shape, const Box& box) {
  if (static_cast<Target>(shape.target) == Target::buffer) return box.width;
  return plane_bytes(block_of(shape.format), box.width, box.height) * box.depth;
}

}  // namespace gpupool::renderer
