// Finds PTX in images. The fatbin layout is not documented by NVIDIA; it is known from public descriptions
// and was checked against what nvcc 13.0 writes (`nvcc -fatbin -compress-mode=...`):
//   file header: u32 magic 0xBA55ED50, u16 version, u16 header bytes, u64 bytes of all entries
//   entry: u16 kind (1 PTX, 2 ELF), u16 version, u32 header bytes, u64 payload bytes (padded), u32 compressed
//   bytes,
//          ... u32 at 28: architecture, u64 at 40: flags (0x2000 LZ4, 0x8000 zstd), u64 at 56: bytes
//          uncompressed
// An image is a pointer without a size (cuModuleLoadData): headers say how far to read.
#include <cstring>

#include "hostd/softgpu/engine/compression.hpp"
#include "hostd/softgpu/engine/engine.hpp"

namespace gpupool::softgpu::engine {
namespace {

constexpr u32 kFatbinMagic = 0xBA55'ED50;
constexpr u32 kWrapperMagic = 0x4662'43B1;
constexpr u64 kFlagLz4 = 0x2000;
constexpr u64 kFlagZstd = 0x8000;
constexpr u16 kKindPtx = 1;
constexpr u16 kKindElf = 2;
constexpr u64 kMaxPtxBytes = 1ull << 30;

struct FileHeader {
  u32 magic;
  u16 version;
  u16 header_bytes;
  u64 bytes;
};
static_assert(sizeof(FileHeader) == 16);

struct Entry {
  u16 kind;
  u16 version;
  u32 header_bytes;
  u64 payload_bytes;
  u32 compressed_bytes;
  u32 reserved;
  u16 minor;
  u16 major;
  u32 architecture;
  u32 name_offset;
  u32 name_bytes;
  u64 flags;
  u64 reserved2;
  u64 uncompressed_bytes;
};
static_assert(sizeof(Entry) == 64);

struct Wrapper {
  u32 magic;
  u32 version;
  const void* data;
  const void* more;  // version 2: the fatbins of the linker, a null-terminated list
};

struct Found {
  bool any = false;
  u32 architecture = 0;
  Entry entry{};
  std::span<const u8> payload;
  std::string machine_code;  // "sm_90, sm_100"
};

void look_at_entry(const Entry& entry, std::span<const u8> payload, u64 architecture, Found& found) {
  if (entry.kind == kKindElf) {
    found.machine_code += (found.machine_code.empty() ? "sm_" : ", sm_") + std::to_string(entry.architecture);
    return;
  }
  if (entry.kind != kKindPtx || entry.architecture > architecture) return;
  if (found.any && entry.architecture <= found.architecture) return;
  found.any = true;
  found.architecture = entry.architecture;
  found.entry = entry;
  found.payload = payload;
}

bool look_at_fatbin(const u8* image, u64 architecture, Found& found, std::string& error) {
  FileHeader header;
  std::memcpy(&header, image, sizeof header);
  if (header.magic != kFatbinMagic || header.header_bytes < sizeof header) {
    error = "image is neither PTX nor a fatbin";
    return false;
  }
  const u8* at = image + header.header_bytes;
  u64 left = header.bytes;
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
  if ((entry.flags & (kFlagLz4 | kFlagZstd)) == 0) {
    ptx.assign(reinterpret_cast<const char*>(found.payload.data()), found.payload.size());
  } else {
    const bool lz4 = (entry.flags & kFlagLz4) != 0;
    if (entry.compressed_bytes > found.payload.size() || entry.uncompressed_bytes > kMaxPtxBytes) {
      error = "fatbin is malformed";
      return false;
    }
    const std::span<const u8> data = found.payload.first(entry.compressed_bytes);
    const bool good = lz4 ? decompress_lz4(data, entry.uncompressed_bytes, ptx)
                          : decompress_zstd(data, entry.uncompressed_bytes, ptx);
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
  const bool binary = magic == engine::kFatbinMagic || magic == engine::kWrapperMagic ||
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
  if (magic == engine::kFatbinMagic) {
    if (!engine::look_at_fatbin(bytes, architecture, found, error)) return false;
  } else {
    engine::Wrapper wrapper;
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
