// Which images the host has kept for this tenant (hostd/worker/image_store.hpp), so that they travel once.
// Only over a network: hashing takes longer than a local copy, docs/performance.md has the figures.
#pragma once

#include <mutex>
#include <unordered_set>
#include <vector>

#include "guest/runtime/session.hpp"

namespace gpupool::guest {

// Whether GPUPOOL_KEEP_IMAGES and the endpoint want it: "on", "off", or anything else for tcp:// and tls://
// to another machine. Over shared memory never.
bool keeps_images(const char* setting, const char* endpoint, bool shared_memory);

class KeptImages {
 public:
  // Whether the host shall keep an image of that many bytes: it is large enough to bother.
  bool wanted(u64 bytes);
  // Whether an image of that size may be there: only then is it worth a name. The first one always is, since
  // its answer tells of all sizes.
  bool has(u64 bytes);
  void add(const std::vector<u64>& sizes);

 private:
  std::mutex mutex_;
  bool told_ = false;
  std::unordered_set<u64> sizes_;
};

// Of this process.
KeptImages& kept_images();

}  // namespace gpupool::guest
