// How long a code image is, when all the program gives is its address: PTX text, a cubin (ELF) or a fatbin;
// and whether an image fits the bytes that carry it. The client asks before it sends, the worker asks again
// of its private copy, so that a driver that trusts the header never reads past the copy.
//
// Sources: the fatbin header and __fatBinC_Wrapper_t are documented by fatbinary_section.h of the CUDA
// toolkit and by what nvcc emits; ELF by the System V ABI.
#pragma once

#include <elf.h>

#include <cstring>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kFatbinMagic = 0xba55'ed50;
inline constexpr u32 kFatbinWrapperMagic = 0x4662'43b1;
inline constexpr u64 kMaxImageBytes = 2ull << 30;
inline constexpr u64 kMaxImageParts = 4096;
// Beside the number of parts of an image that is loaded. Where no memory is shared the host may keep images
// for the tenant's later sessions, so that they need not travel again (hostd/worker/image_store.hpp).
inline constexpr u32 kKeepImage = 1u << 30;    // keep it
inline constexpr u32 kImageByName = 1u << 31;  // it is not here: a Digest and u64 bytes of its bulk piece are
// The answer to such a load ends with a counted array of u64, the sizes of bulk pieces that are kept; empty
// but for the first. NOT_READY as the load's result: no image of that name is kept.
inline constexpr u64 kMaxSizesTold = 128;

enum class ImageKind : u32 { invalid = 0, ptx = 1, cubin = 2, fatbin = 3 };

struct FatbinHeader {
  u32 magic;
  u16 version;
  u16 header_bytes;
  u64 payload_bytes;  // after the header
};
static_assert(sizeof(FatbinHeader) == 16);

// What precedes each piece of code in a fatbin. Not documented by NVIDIA; known from public descriptions and
// checked against what nvcc 11 to 13 write (`nvcc -fatbin -compress-mode=...`). The first 32 bytes are in all
// of them; the rest is there when `header_bytes` says so.
struct FatbinEntry {
  u16 kind;
  u16 version;
  u32 header_bytes;
  u64 payload_bytes;     // padded
  u32 compressed_bytes;  // without the padding
  u32 options_place;
  u32 code_version;
  u32 architecture;  // 90 for sm_90
  u32 name_offset;
  u32 name_bytes;
  u64 flags;
  u64 reserved;
  u64 uncompressed_bytes;

  static constexpr u16 kPtx = 1;
  static constexpr u16 kCubin = 2;
  static constexpr u64 kLz4 = 0x2000;
  static constexpr u64 kZstd = 0x8000;
};
static_assert(sizeof(FatbinEntry) == 64);

// __fatBinC_Wrapper_t. Version 1: `data` is a fatbin. Version 2: `data` is the device-linked fatbin and
// `prelinked` a null-terminated array of the fatbins it was linked from, which the driver links again where
// the linked one does not fit the device.
struct FatbinWrapper {
  u32 magic;
  u32 version;
  const void* data;
  void* prelinked;
};
static_assert(sizeof(FatbinWrapper) == 24);

struct ImageExtent {
  ImageKind kind = ImageKind::invalid;
  u64 bytes = 0;
};

namespace detail {

template <typename T>
T image_read(const u8* image, u64 offset) {
  T value;
  std::memcpy(&value, image + offset, sizeof(T));
  return value;
}

// End of [offset, +bytes), or 0 when that is beyond any image.
constexpr u64 image_end(u64 offset, u64 bytes) {
  return offset > kMaxImageBytes || bytes > kMaxImageBytes - offset ? 0 : offset + bytes;
}

// The furthest byte that the file's tables or any of their entries mention. 0 when malformed.
inline u64 elf_bytes(const u8* image, u64 limit) {
  if (limit < sizeof(Elf64_Ehdr)) return 0;
  const auto header = image_read<Elf64_Ehdr>(image, 0);
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_ident[EI_DATA] != ELFDATA2LSB) return 0;
  u64 end = sizeof(Elf64_Ehdr);
  const auto extend = [&end, limit](u64 offset, u64 bytes) {
    const u64 last = image_end(offset, bytes);
    if ((last == 0 && (offset | bytes) != 0) || last > limit) return false;
    end = last > end ? last : end;
    return true;
  };
  if (header.e_phnum != 0) {
    if (header.e_phentsize != sizeof(Elf64_Phdr)) return 0;
    if (!extend(header.e_phoff, u64{header.e_phnum} * sizeof(Elf64_Phdr))) return 0;
    for (u32 i = 0; i < header.e_phnum; ++i) {
      const auto segment = image_read<Elf64_Phdr>(image, header.e_phoff + i * sizeof(Elf64_Phdr));
      if (segment.p_filesz != 0 && !extend(segment.p_offset, segment.p_filesz)) return 0;
    }
  }
  if (header.e_shoff != 0) {
    if (header.e_shentsize != sizeof(Elf64_Shdr)) return 0;
    if (!extend(header.e_shoff, sizeof(Elf64_Shdr))) return 0;
    // More than 65279 sections: the count is in the first section header (System V ABI, "sh_size").
    u64 count = header.e_shnum;
    if (count == 0) count = image_read<Elf64_Shdr>(image, header.e_shoff).sh_size;
    if (count > kMaxImageBytes / sizeof(Elf64_Shdr)) return 0;
    if (!extend(header.e_shoff, count * sizeof(Elf64_Shdr))) return 0;
    for (u64 i = 0; i < count; ++i) {
      const auto section = image_read<Elf64_Shdr>(image, header.e_shoff + i * sizeof(Elf64_Shdr));
      if (section.sh_type == SHT_NOBITS || section.sh_type == SHT_NULL || section.sh_size == 0) continue;
      if (!extend(section.sh_offset, section.sh_size)) return 0;
    }
  }
  return end;
}

inline u64 fatbin_bytes(const u8* image, u64 limit) {
  if (limit < sizeof(FatbinHeader)) return 0;
  const auto header = image_read<FatbinHeader>(image, 0);
  if (header.header_bytes < sizeof(FatbinHeader)) return 0;
  const u64 end = image_end(header.header_bytes, header.payload_bytes);
  return end <= limit ? end : 0;
}

// Text ends with its NUL; the terminator counts. 0 when there is none within the limit or it is no text. Only
// ASCII begins one: a driver looks at the first bytes for what else an image may be, and would follow the
// pointers of a FatbinWrapper (0xb1 ...).
inline u64 text_bytes(const u8* image, u64 limit) {
  const bool begins = limit != 0 && (image[0] == '\t' || image[0] == '\n' || image[0] == '\r' ||
                                     (image[0] >= ' ' && image[0] < 0x7f));
  if (!begins) return 0;
  const void* end = std::memchr(image, 0, limit);
  return end == nullptr ? 0 : static_cast<u64>(static_cast<const u8*>(end) - image) + 1;
}

}  // namespace detail

// The extent of an image at `address` of which at most `limit` bytes may be read (kMaxImageBytes where only
// the program knows). Reads no further than the image's own headers say it goes. A wrapper is not an image:
// see FatbinWrapper.
inline ImageExtent measure_image(const void* address, u64 limit) {
  const u8* image = static_cast<const u8*>(address);
  ImageExtent extent;
  const auto starts_with = [image, limit](const void* magic, u64 bytes) {
    for (u64 i = 0; i < bytes; ++i)
      if (i >= limit || image[i] != static_cast<const u8*>(magic)[i]) return false;
    return true;
  };
  if (starts_with(ELFMAG, SELFMAG)) {
    extent = {ImageKind::cubin, detail::elf_bytes(image, limit)};
  } else if (starts_with(&kFatbinMagic, sizeof kFatbinMagic)) {
    extent = {ImageKind::fatbin, detail::fatbin_bytes(image, limit)};
  } else {
    extent = {ImageKind::ptx, detail::text_bytes(image, limit)};
  }
  return extent.bytes == 0 ? ImageExtent{} : extent;
}

}  // namespace gpupool::wire
