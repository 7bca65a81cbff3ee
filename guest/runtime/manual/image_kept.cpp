#include "guest/runtime/manual/image_kept.hpp"

#include <cstdlib>
#include <string_view>

namespace gpupool::guest {

namespace {

constexpr u64 kLeastBytes = 256 * 1024;  // 0.25 ms at 1 GB/s: about a round trip

// The host of "tcp://host:port". A wrong guess costs time, nothing else.
bool this_machine(std::string_view endpoint) {
  const std::string_view host = endpoint.substr(6);
  return host.starts_with("127.") || host.starts_with("localhost:") || host.starts_with("[::1]");
}

}  // namespace

bool keeps_images(const char* setting, const char* endpoint, bool shared_memory) {
  if (shared_memory) return false;
  const std::string_view wanted = setting == nullptr ? "" : setting;
  if (wanted == "on" || wanted == "off") return wanted == "on";
  const std::string_view where = endpoint == nullptr ? "" : endpoint;
  return (where.starts_with("tcp://") || where.starts_with("tls://")) && !this_machine(where);
}

bool KeptImages::wanted(u64 bytes) {
  static const bool keeps = keeps_images(std::getenv("GPUPOOL_KEEP_IMAGES"), std::getenv("GPUPOOL_ENDPOINT"),
                                         Session::current()->shared_memory());
  return keeps && bytes >= kLeastBytes;
}

bool KeptImages::has(u64 bytes) {
  const std::lock_guard lock(mutex_);
  return !told_ || sizes_.contains(bytes);
}

void KeptImages::add(const std::vector<u64>& sizes) {
  const std::lock_guard lock(mutex_);
  told_ = true;
  sizes_.insert(sizes.begin(), sizes.end());
}

KeptImages& kept_images() {
  static auto& kept = *new KeptImages();  // programs load modules from exit handlers
  return kept;
}

}  // namespace gpupool::guest
