// Code images and compiler options on their way to the worker.
#pragma once

#include <cuda.h>

#include <span>
#include <string>
#include <vector>

#include "guest/runtime/manual/image_fatbin.hpp"
#include "guest/runtime/message.hpp"
#include "wire/cpp/image.hpp"
#include "wire/cpp/jit_options.hpp"

namespace gpupool::guest {

// What is sent of an image: one part, or for a device-linked fatbin that part and then the fatbins it was
// linked from. The parts refer to the program's memory.
struct Image {
  std::vector<FatbinSelection> parts;
};

// Follows a fatbin wrapper and measures the image. INVALID_IMAGE when it is none that we know.
CUresult find_image(const void* address, Image& image);

// Reads a whole file and appends a NUL, which PTX needs and nothing else minds.
CUresult read_image_file(const char* path, std::vector<u8>& bytes);

// An image copied into the window, for one call or two; freed when this ends, so it must outlive them.
class ImageUpload {
 public:
  ImageUpload() = default;
  ~ImageUpload();
  ImageUpload(const ImageUpload&) = delete;
  ImageUpload& operator=(const ImageUpload&) = delete;
  // Copies the parts' sizes and then the parts, with zeroes between.
  CUresult prepare(const Image& image);
  // Puts the number of parts, with `flags` (kKeepImage) beside it, into the call's payload and attaches them.
  void attach(Call& call, u32 flags) const;
  // Puts the image's name in their place.
  void name(Call& call) const;
  [[nodiscard]] u64 bytes() const { return bytes_; }

 private:
  Bulk bulk_;
  u32 parts_ = 0;
  u64 bytes_ = 0;
};

// The options of one cuModuleLoadDataEx, cuLibraryLoadData or cuLink call, and where their results go.
class JitOptions {
 public:
  CUresult read(unsigned int count, const CUjit_option* options, void** values);
  void put(Call& call) const;
  // Reads what the driver wrote and copies it to the program's variables and buffers; fetches it first where
  // it did not fit the answer.
  CUresult take(Call& call);

 private:
  struct Log {
    char* buffer = nullptr;
    void** size_value = nullptr;  // the option value that tells the size, and receives it
    u32 capacity = 0;
  };

  std::vector<u16> options_;    // those that hold a number...
  std::vector<u32> numbers_;    // ... their numbers...
  std::vector<void**> values_;  // ... and where they came from
  Log info_, error_;
};

// Has the worker load an image as the module or library of that handle: sends `message` with the options and
// brings their results back, also those of a load that failed.
CUresult load_image(wire::Function message, wire::Handle handle, const Image& image, JitOptions& options);

}  // namespace gpupool::guest
