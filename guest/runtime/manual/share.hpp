// The forms in which programs pass shared memory on: 64 bytes, or a file descriptor. Either holds a token
// (wire/cpp/share.hpp).
#pragma once

#include <cuda.h>

#include <cstring>

#include "wire/cpp/share.hpp"

namespace gpupool::guest {

// Into and out of CUipcMemHandle, CUipcEventHandle and CUmemPoolPtrExportData, which are 64 bytes each.
template <typename Opaque>
void write_token(Opaque& out, wire::ShareKind kind, const wire::ShareToken& token) {
  static_assert(sizeof(Opaque) == sizeof(wire::ShareHandle));
  wire::ShareHandle handle;
  handle.kind = kind;
  handle.token = token;
  std::memcpy(&out, &handle, sizeof out);
}
template <typename Opaque>
bool read_token(const Opaque& in, wire::ShareKind kind, wire::ShareToken& token) {
  static_assert(sizeof(Opaque) == sizeof(wire::ShareHandle));
  wire::ShareHandle handle;
  std::memcpy(static_cast<void*>(&handle), &in, sizeof handle);
  token = handle.token;
  return handle.magic == wire::kShareMagic && handle.kind == kind;
}

// A descriptor that stands for the token, and that the program closes. The token is taken back some time
// after the last copy of it, in any process, has been closed. -1 when the system has no descriptors left.
int make_token_file(wire::ShareKind kind, const wire::ShareToken& token);
// The token of such a descriptor; false for any other.
bool read_token_file(int fd, wire::ShareKind kind, wire::ShareToken& token);
// Takes back the tokens of descriptors that nobody has any more. `all`: looks at every one; else now and
// then. True when there were any: the memory behind them is free.
bool collect_token_files(bool all);

}  // namespace gpupool::guest
