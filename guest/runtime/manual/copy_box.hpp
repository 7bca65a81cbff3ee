// Copies of boxes: rows, slices, arrays. The host's side is packed into pieces of the window row by row, or
// copied in place where it is pinned.
#pragma once

#include <cuda.h>

#include "guest/runtime/manual/copy_linear.hpp"
#include "guest/runtime/manual/copy_parts.hpp"
#include "guest/runtime/objects.hpp"
#include "wire/cpp/copy_message.hpp"

namespace gpupool::guest {

// One side of a box copy as the program gave it, with the address of unified memory already told apart.
struct BoxSide {
  enum class Kind : u8 { host, device, array } kind = Kind::device;
  u64 address = 0;  // host or device address, or the array's handle
  u64 x_bytes = 0, y = 0, z = 0;
  u32 lod = 0;
  u64 pitch = 0;   // bytes from row to row; host and device only
  u64 height = 0;  // rows from slice to slice
};

struct Box {
  BoxSide source;
  BoxSide destination;
  u64 width_bytes = 0, height = 0, depth = 0;
  Context* source_context = nullptr;  // both set for copies between contexts
  Context* destination_context = nullptr;
};

CUresult copy_box(Box box, Stream& stream, CopyCall call);

// Rows of a part of a host side, to and from where they lie one after the other.
void pack_box(u8* piece, const BoxSide& side, const Part& part);
void unpack_box(const u8* piece, const BoxSide& side, const Part& part);

}  // namespace gpupool::guest
