#include "hostd/worker/image_memory.hpp"

#include <algorithm>
#include <string>
#include <vector>

#include "hostd/compression/compression.hpp"
#include "hostd/worker/ptx_variables.hpp"
#include "wire/cpp/image.hpp"

namespace gpupool::worker {
namespace {

u64 add(u64 a, u64 b) {
  u64 sum = 0;
  return __builtin_add_overflow(a, b, &sum) ? ~u64{0} : sum;
}

// Every section that is there while it runs (System V ABI, SHF_ALLOC): .text.*, .nv.constant*, .nv.global,
// .nv.global.init.
u64 cubin_bytes(std::span<const u8> image) {
  const auto header = wire::detail::image_read<Elf64_Ehdr>(image.data(), 0);
  if (header.e_shoff == 0) return image.size();
  u64 count = header.e_shnum;
  if (count == 0) count = wire::detail::image_read<Elf64_Shdr>(image.data(), header.e_shoff).sh_size;
  u64 sum = 0;
  for (u64 i = 0; i < count; ++i) {
    const auto section =
        wire::detail::image_read<Elf64_Shdr>(image.data(), header.e_shoff + i * sizeof(Elf64_Shdr));
    if ((section.sh_flags & SHF_ALLOC) != 0) sum = add(sum, section.sh_size);
  }
  return sum;
}

struct Entry {
  wire::FatbinEntry head{};
  std::span<const u8> payload;
};

std::vector<Entry> entries_of(std::span<const u8> fatbin) {
  std::vector<Entry> entries;
  const auto header = wire::detail::image_read<wire::FatbinHeader>(fatbin.data(), 0);
  for (std::span<const u8> left = fatbin.subspan(header.header_bytes);
       left.size() >= sizeof(wire::FatbinEntry);) {
    Entry entry;
    std::memcpy(&entry.head, left.data(), sizeof entry.head);
    if (entry.head.header_bytes < 32 || entry.head.header_bytes > left.size() ||
        entry.head.payload_bytes > left.size() - entry.head.header_bytes)
      break;
    // Older ones end before the flags.
    if (entry.head.header_bytes < sizeof entry.head) entry.head.flags = entry.head.uncompressed_bytes = 0;
    entry.payload = left.subspan(entry.head.header_bytes, entry.head.payload_bytes);
    left = left.subspan(entry.head.header_bytes + entry.head.payload_bytes);
    entries.push_back(entry);
  }
  return entries;
}

u64 entry_bytes(const Entry& entry, u32 architecture) {
  const bool lz4 = (entry.head.flags & wire::FatbinEntry::kLz4) != 0;
  const bool zstd = (entry.head.flags & wire::FatbinEntry::kZstd) != 0;
  std::string code;
  std::span<const u8> image = entry.payload;
  if (lz4 || zstd) {
    const std::span<const u8> data = image.first(std::min<u64>(image.size(), entry.head.compressed_bytes));
    const u64 most = std::min<u64>(entry.head.uncompressed_bytes, wire::kMaxImageBytes);
    const bool good =
        lz4 ? compression::decompress_lz4(data, most, code) : compression::decompress_zstd(data, most, code);
    if (!good) return std::max<u64>(entry.head.uncompressed_bytes, entry.head.payload_bytes);
    image = {reinterpret_cast<const u8*>(code.data()), code.size()};
  }
  if (entry.head.kind == wire::FatbinEntry::kPtx)
    return ptx_variable_bytes({reinterpret_cast<const char*>(image.data()), image.size()});
  const wire::ImageExtent extent = wire::measure_image(image.data(), image.size());
  return extent.kind == wire::ImageKind::cubin ? image_device_bytes(image.first(extent.bytes), architecture)
                                               : image.size();
}

// Machine code runs on its own generation from its own version on, PTX is compiled for all later ones (CUDA
// programming guide, "Binary Compatibility"); the newest that fits is taken.
bool fits(const Entry& entry, u32 architecture) {
  const u32 wants = entry.head.architecture;
  if (entry.head.kind == wire::FatbinEntry::kPtx) return wants <= architecture;
  return entry.head.kind == wire::FatbinEntry::kCubin && wants / 10 == architecture / 10 &&
         wants <= architecture;
}

u64 fatbin_bytes(std::span<const u8> image, u32 architecture) {
  const std::vector<Entry> entries = entries_of(image);
  for (const u16 kind : {wire::FatbinEntry::kCubin, wire::FatbinEntry::kPtx}) {
    u32 newest = 0;
    for (const Entry& entry : entries)
      if (entry.head.kind == kind && fits(entry, architecture))
        newest = std::max(newest, entry.head.architecture);
    u64 most = 0;  // one of them is loaded
    bool found = false;
    for (const Entry& entry : entries) {
      if (entry.head.kind != kind || entry.head.architecture != newest || !fits(entry, architecture))
        continue;
      found = true;
      most = std::max(most, entry_bytes(entry, architecture));
    }
    if (found) return most;
  }
  return 0;  // the driver will not load it
}

}  // namespace

u64 image_device_bytes(std::span<const u8> image, u32 architecture) {
  switch (wire::measure_image(image.data(), image.size()).kind) {
    case wire::ImageKind::ptx:
      return ptx_variable_bytes({reinterpret_cast<const char*>(image.data()), image.size()});
    case wire::ImageKind::cubin:
      return cubin_bytes(image);
    case wire::ImageKind::fatbin:
      return fatbin_bytes(image, architecture);
    default:
      return image.size();
  }
}

u64 code_device_bytes(const void* code, u32 architecture) {
  u32 magic = 0;
  std::memcpy(&magic, code, sizeof magic);
  const auto one = [&](const void* at) {
    const wire::ImageExtent extent = wire::measure_image(at, wire::kMaxImageBytes);
    return image_device_bytes({static_cast<const u8*>(at), extent.bytes}, architecture);
  };
  if (magic != wire::kFatbinWrapperMagic) return one(code);
  wire::FatbinWrapper wrapper{};
  std::memcpy(&wrapper, code, sizeof wrapper);
  // The linked one, or what it was linked from where it does not fit.
  if (const u64 linked = one(wrapper.data); linked != 0) return linked;
  u64 sum = 0;
  for (auto* part = static_cast<const void* const*>(wrapper.prelinked); part != nullptr && *part != nullptr;
       ++part)
    sum = add(sum, one(*part));
  return sum;
}

}  // namespace gpupool::worker
