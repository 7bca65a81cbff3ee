#include "hostd/worker/image_scan.hpp"

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <string_view>
#include <thread>

#include "hostd/compression/compression.hpp"

namespace gpupool::worker {
namespace {

constexpr u64 kMaxExpanded = 256u << 20;  // of one entry; larger ones are taken to print

struct Scanner {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<std::shared_ptr<ImageCopy>> waiting;
  bool started = false;
  std::atomic<u32> unfinished{0};
  std::atomic<bool> prints{false};
};

Scanner& scanner() {
  static auto& all = *new Scanner();  // its thread ends with the process
  return all;
}

// Machine code names the function in its string table, PTX in its text.
bool names_printf(std::string_view code) {
  return code.find("vprintf") != std::string_view::npos;
}

std::string_view text_of(std::span<const u8> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

bool entry_may_print(const wire::FatbinEntry& entry, std::span<const u8> payload) {
  const bool lz4 = (entry.flags & wire::FatbinEntry::kLz4) != 0;
  const bool zstd = (entry.flags & wire::FatbinEntry::kZstd) != 0;
  if (entry.kind != wire::FatbinEntry::kPtx && entry.kind != wire::FatbinEntry::kCubin) return true;
  if (!lz4 && !zstd) return names_printf(text_of(payload));
  if (entry.compressed_bytes > payload.size() || entry.uncompressed_bytes > kMaxExpanded) return true;
  std::string code;
  const std::span<const u8> data = payload.first(entry.compressed_bytes);
  const bool good = lz4 ? compression::decompress_lz4(data, entry.uncompressed_bytes, code)
                        : compression::decompress_zstd(data, entry.uncompressed_bytes, code);
  return !good || names_printf(code);
}

bool fatbin_may_print(std::span<const u8> image) {
  wire::FatbinHeader header;
  std::memcpy(&header, image.data(), sizeof header);
  std::span<const u8> left = image.subspan(header.header_bytes);
  while (!left.empty()) {
    wire::FatbinEntry entry{};
    if (left.size() < sizeof entry) return true;
    std::memcpy(&entry, left.data(), sizeof entry);
    if (entry.header_bytes < sizeof entry || entry.header_bytes > left.size() ||
        entry.payload_bytes > left.size() - entry.header_bytes)
      return true;
    if (entry_may_print(entry, left.subspan(entry.header_bytes, entry.payload_bytes))) return true;
    left = left.subspan(entry.header_bytes + entry.payload_bytes);
  }
  return false;
}

void scan_loop() {
  Scanner& all = scanner();
  while (true) {
    std::shared_ptr<ImageCopy> image;
    {
      std::unique_lock lock(all.mutex);
      all.changed.wait(lock, [&] { return !all.waiting.empty(); });
      image = std::move(all.waiting.front());
      all.waiting.pop_front();
    }
    if (!all.prints.load(std::memory_order_relaxed))
      for (const std::span<const u8>& part : image->parts())
        if (may_print(part)) all.prints.store(true, std::memory_order_release);
    image.reset();
    all.unfinished.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace

bool may_print(std::span<const u8> image) {
  switch (wire::measure_image(image.data(), image.size()).kind) {
    case wire::ImageKind::ptx:
    case wire::ImageKind::cubin:
      return names_printf(text_of(image));
    case wire::ImageKind::fatbin:
      return fatbin_may_print(image);
    default:
      return true;
  }
}

void scan_image(std::shared_ptr<ImageCopy> image) {
  Scanner& all = scanner();
  if (image == nullptr || all.prints.load(std::memory_order_relaxed)) return;
  const std::lock_guard lock(all.mutex);
  all.unfinished.fetch_add(1, std::memory_order_relaxed);
  all.waiting.push_back(std::move(image));
  if (!all.started) std::thread(scan_loop).detach();
  all.started = true;
  all.changed.notify_one();
}

Printing printing() {
  const Scanner& all = scanner();
  const bool unfinished = all.unfinished.load(std::memory_order_acquire) != 0;
  if (all.prints.load(std::memory_order_acquire)) return Printing::yes;
  return unfinished ? Printing::unknown : Printing::no;
}

}  // namespace gpupool::worker
