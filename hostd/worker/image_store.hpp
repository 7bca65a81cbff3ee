// Code images that came over a network, kept in the tenant's cache folder under the SHA-256 of their bytes,
// so that the next session of this tenant need not send them again.
//
// Trust: the folder is open to workers of this tenant only (hostd/adapters/cache_folders.py). What is read is
// compared with its name each time, so a file that another of them damaged or put there is no other image.
// Files appear whole, by a rename; several workers may keep, read and remove at the same time.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "wire/cpp/image.hpp"
#include "wire/cpp/sha256.hpp"

namespace gpupool::worker {

class ImageStore {
 public:
  static constexpr u64 kMostBytes = 1ull << 30;
  static constexpr u64 kMostTold = wire::kMaxSizesTold;

  // An empty folder: nothing is kept. The folder is made when the first image is.
  explicit ImageStore(std::string folder, u64 most_bytes = kMostBytes);

  // Sizes of what is there, the last used first; at most kMostTold.
  [[nodiscard]] std::vector<u64> sizes() const;
  // The image of that name and size in memory of our own, which counts as a use; null when it is not there.
  [[nodiscard]] std::unique_ptr<u8[]> load(const wire::Digest& name, u64 bytes) const;
  // Keeps an image and removes those that were not used for the longest time, until all of them fit.
  void keep(std::span<const u8> image) const;

 private:
  struct Entry {
    std::string name;
    u64 bytes = 0;
    i64 used_ns = 0;
    bool temporary = false;
  };
  [[nodiscard]] std::vector<Entry> list() const;
  [[nodiscard]] std::string path(const std::string& name) const { return folder_ + "/" + name; }
  void make_room() const;

  std::string folder_;
  u64 most_bytes_;
};

class ImageCopy;
// Keeps an image in image_store() in a thread of its own, since hashing and writing take as long as the
// client would wait.
void keep_image(std::shared_ptr<ImageCopy> image);

// This worker's: in the folder where the driver, too, keeps its code (CUDA_CACHE_PATH).
const ImageStore& image_store();

}  // namespace gpupool::worker
