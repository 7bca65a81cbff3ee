// What carries out a client's commands, once they are checked: libvirglrenderer, or nothing at all under a
// fuzzer.
#pragma once

#include <sys/uio.h>

#include <string>
#include <vector>

#include "hostd/renderer/formats.hpp"

namespace gpupool::renderer {

class Backend {
 public:
  virtual ~Backend() = default;
  // The one context of the client.
  virtual bool create_context(const std::string& name) = 0;
  // The capability set of that number, 1 or 2; empty when there is none.
  virtual std::vector<u8> capabilities(u32 set) = 0;
  virtual bool create(u32 handle, const Shape& shape) = 0;
  // Memory that transfers may name instead of their own; it lives until destroy().
  virtual bool attach(u32 handle, iovec* memory) = 0;
  virtual void destroy(u32 handle) = 0;
  // `memory` is null for what is attached. False when the renderer refused.
  virtual bool read(u32 handle, u32 level, u32 stride, u32 layer_stride, const Box& box, u64 offset,
                    iovec* memory) = 0;
  virtual bool write(u32 handle, u32 level, u32 stride, u32 layer_stride, const Box& box, u64 offset,
                     iovec* memory) = 0;
  virtual bool submit(u32* words, u32 count) = 0;
  // Has the GPU begin with everything so far.
  virtual void flush() = 0;
  // Puts the mark behind everything so far.
  virtual void mark() = 0;
  // Whether the mark has been passed; sleeps until it is, but not for longer than that. Throws when the GPU
  // has failed.
  virtual bool reach(u64 most_ns) = 0;
  // Writes the results of queries that are done by now to where clients read them.
  virtual void settle_queries() = 0;
  // Puts a fence behind everything so far; its number, one more than the last one's.
  virtual u32 fence() = 0;
  // The newest fence that has been passed. Asks the driver.
  virtual u32 passed() = 0;
};

}  // namespace gpupool::renderer
