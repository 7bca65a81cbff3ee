// How a box of bytes is cut into parts that fit into one piece of the window each.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

// Some slices of the box, some rows of a slice, or a part of a row.
struct Part {
  u64 x = 0, y = 0, z = 0;
  u64 width = 0, height = 0, depth = 0;
  [[nodiscard]] u64 bytes() const { return width * height * depth; }
};

// Hands out parts of at most `limit` bytes that tile the box, in the order of its bytes.
class Cutter {
 public:
  Cutter(u64 width, u64 height, u64 depth, u64 limit) : width_(width), height_(height), depth_(depth) {
    step_.width = least(width, limit);
    step_.height = step_.width < width ? 1 : at_least_one(limit / step_.width, height);
    step_.depth = step_.height < height || step_.width < width
                      ? 1
                      : at_least_one(limit / (step_.width * step_.height), depth);
  }

  // The next part; false after the last.
  bool next(Part& part) {
    if (z_ >= depth_) return false;
    part = Part{x_,
                y_,
                z_,
                least(step_.width, width_ - x_),
                least(step_.height, height_ - y_),
                least(step_.depth, depth_ - z_)};
    x_ += part.width;
    if (x_ < width_) return true;
    x_ = 0;
    y_ += part.height;
    if (y_ < height_) return true;
    y_ = 0;
    z_ += part.depth;
    return true;
  }

 private:
  static u64 least(u64 a, u64 b) { return a < b ? a : b; }
  static u64 at_least_one(u64 value, u64 most) { return value == 0 ? 1 : least(value, most); }

  u64 width_, height_, depth_;
  Part step_;
  u64 x_ = 0, y_ = 0, z_ = 0;
};

}  // namespace gpupool::guest
