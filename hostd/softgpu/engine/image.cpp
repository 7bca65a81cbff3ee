// Finds PTX in images. An image is a pointer without a size (cuModuleLoadData): headers say how far to read.
#include "wire/cpp/image.hpp"

#include <cstring>

#include "hostd/compression/compression.hpp"
#include "hostd/softgpu/engine/engine.hpp"

namespace gpupool::softgpu::engine {
namespace {

using Entry = wire::FatbinEntry;
constexpr u64 kMaxPtxBytes = 1ull << 30;

struct Found {
  bool any = false;
  u32 architecture = 0;
  Entry entry{};
  std::span<const u8> payload;
  std::string machine_code;  // "sm_90, sm_100"
};

void look_at_entry(const Entry& entry, std::span<const u8> payload, u64 architecture, Found& found) {
  if (entry.kind == Entry::kCubin) {
    found.machine_code += (found.machine_code.empty() ? "sm_" : ", sm_") + std::to_string(entry.architecture);
    return;
  }
  if (entry.kind != Entry::kPtx || entry.architecture > architecture) return;
  if (found.any && entry.architecture <= found.architecture) return;
  found.any = true;
  found.architecture = entry.architecture;
  found.entry = entry;
  found.payload = payload;
}

bool look_at_fatbin(const u8* image, u64 architecture, Found& found, std::string& error) {
  wire::FatbinHeader header;
  std::memcpy(&header, image, sizeof header);
  if (header.magic != wire::kFatbinMagic || header.header_bytes < sizeof header) {
    error = "image is neither PTX nor a fatbin";
    return false;
  }
  const u8* at = image + header.header_bytes;
  u64 left = header.payload_bytes;
  while (left >= sizeof(Entry)) {
    Entry entry;
    std::memcpy(&entry, at, sizeof entry);
    if (entry.header_bytes < sizeof entry || entry.header_bytes > left ||
        entry.payload_bytes > left - entry.header_bytes) {
      error = "fatbin is malformed";
      return false;
    }
    look_at_entry(entry, {at + entry.header_bytes, entry.payload_bytes}, architecture, found);
    at += entry.header_bytes + entry.payload_bytes;
    left -= entry.header_bytes + entry.payload_bytes;
  }
  return true;
}

bool extract(const Found& found, std::string& ptx, std::string& error) {
  const Entry& entry = found.entry;
  ptx.clear();
  if ((entry.flags & (Entry::kLz4 | Entry::kZstd)) == 0) {
    ptx.assign(reinterpret_cast<const char*>(found.payload.data()), found.payload.size());
  } else {
    const bool lz4 = (entry.flags & Entry::kLz4) != 0;
    if (entry.compressed_bytes > found.payload.size() || entry.uncompressed_bytes > kMaxPtxBytes) {
      error = "fatbin is malformed";
      return false;
    }
    const std::span<const u8> data = found.payload.first(entry.compressed_bytes);
    const bool good = lz4 ? compression::decompress_lz4(data, entry.uncompressed_bytes, ptx)
                          : compression::decompress_zstd(data, entry.uncompressed_bytes, ptx);
    if (!good) {
      error = std::string("compressed PTX (") + (lz4 ? "LZ4" : "zstd") + ") is malformed";
      return false;
    }
  }
  if (const size_t end = ptx.find('\0'); end != std::string::npos) ptx.resize(end);
  return true;
}

}  // namespace

}  // namespace gpupool::softgpu::engine

namespace gpupool::softgpu {

bool find_ptx(const void* image, u64 architecture, std::string& ptx, std::string& error) {
  if (image == nullptr) {
    error = "no image";
    return false;
  }
  // PTX text is read as far as its terminating NUL, byte by byte: nothing else says how long it is.
  const char* text = static_cast<const char*>(image);
  u32 magic = 0;
  const size_t prefix = strnlen(text, sizeof magic);
  if (prefix == sizeof magic) std::memcpy(&magic, text, sizeof magic);
  const u8* const bytes = static_cast<const u8*>(image);
  const bool binary = magic == wire::kFatbinMagic || magic == wire::kFatbinWrapperMagic ||
                      (bytes[0] == 0x7f && prefix == 4 && std::memcmp(text + 1, "ELF", 3) == 0);
  if (!binary) {
    ptx = text;
    if (ptx.find(".version") != std::string::npos) return true;
    error = "image is neither PTX nor a fatbin";
    return false;
  }
  if (bytes[0] == 0x7f) {
    error = "image holds only machine code: the software GPU needs PTX";
    return false;
  }
  engine::Found found;
  if (magic == wire::kFatbinMagic) {
    if (!engine::look_at_fatbin(bytes, architecture, found, error)) return false;
  } else {
    wire::FatbinWrapper wrapper;
    std::memcpy(&wrapper, image, sizeof wrapper);
    if (wrapper.data == nullptr ||
        !engine::look_at_fatbin(static_cast<const u8*>(wrapper.data), architecture, found, error)) {
      if (error.empty()) error = "fatbin wrapper without data";
      return false;
    }
  }
  if (found.any) return engine::extract(found, ptx, error);
  error = found.machine_code.empty()
              ? "fatbin holds no PTX for this architecture"
              : "image holds only machine code for " + found.machine_code + ": the software GPU needs PTX";
  return false;
}

}  // namespace gpupool::softgpu
