// Images and compiler options as they arrive: copied out of the window once, measured again, kept as long as
// the driver may read them.
#pragma once

#include <cuda.h>

#include <memory>
#include <vector>

#include "hostd/worker/worker.hpp"
#include "wire/cpp/image.hpp"
#include "wire/cpp/jit_options.hpp"

namespace gpupool::worker {

class ImageCopy {
 public:
  // Takes the image that the request carries. Null when it does not parse as what it claims to be or when
  // this session holds too many bytes of images already; `error` then says which. Throws ProtocolError for a
  // message that no honest client sends. NOT_READY: the client named an image that is not kept.
  // `asked` gets the flags beside the number of parts.
  static std::shared_ptr<ImageCopy> take(Worker& worker, Request& request, CUresult& error, u32& asked);
  ~ImageCopy();
  ImageCopy(const ImageCopy&) = delete;
  ImageCopy& operator=(const ImageCopy&) = delete;

  // What the driver is given: the image, or a fatbin wrapper around several.
  [[nodiscard]] const void* code() const {
    return wrapper_.magic != 0 ? static_cast<const void*>(&wrapper_) : memory_;
  }
  [[nodiscard]] u64 bytes() const { return bytes_; }
  // Each image by itself: more than one when a fatbin is linked from others.
  [[nodiscard]] const std::vector<std::span<const u8>>& parts() const { return parts_; }

  // As they came: sizes, then the parts with zeroes between.
  [[nodiscard]] std::vector<u8> packed() const;

 private:
  ImageCopy() = default;
  static std::shared_ptr<ImageCopy> unpack(Worker& worker, const u8* source, u64 bytes, u32 parts,
                                           CUresult& error);
  CUresult check(const std::vector<u64>& sizes, const std::vector<u64>& places);

  u8* memory_ = nullptr;
  u64 bytes_ = 0;  // of the mapping
  std::vector<u64> sizes_;
  std::vector<std::span<const u8>> parts_;
  std::vector<const void*> prelinked_;
  wire::FatbinWrapper wrapper_{};
};

// Ends the answer to a load: keeps the image (null: it did not load) if the client asked for that, and tells
// which sizes are kept.
void answer_kept(const std::shared_ptr<ImageCopy>& image, u32 asked, Request& request);

// Options as the driver takes them, with log buffers of our own. Kept alive by its owner while the driver may
// write to it.
class JitArguments {
 public:
  explicit JitArguments(Request& request);
  JitArguments(const JitArguments&) = delete;
  JitArguments& operator=(const JitArguments&) = delete;
  [[nodiscard]] unsigned int count() const { return static_cast<unsigned int>(options_.size()); }
  CUjit_option* options() { return options_.data(); }
  void** values() { return values_.data(); }
  // Writes numbers and logs into the answer, or says that they wait for jit_results.
  void answer(Worker& worker, Request& request) const;

 private:
  void add_log(std::vector<char>& log, u32 capacity, CUjit_option buffer, CUjit_option size);

  u64 numbers_ = 0;
  std::vector<CUjit_option> options_;
  std::vector<void*> values_;
  std::vector<char> info_, error_;
};

}  // namespace gpupool::worker
