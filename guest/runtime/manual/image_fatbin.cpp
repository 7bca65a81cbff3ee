#include "guest/runtime/manual/image_fatbin.hpp"

#include <algorithm>
#include <cstring>

#include "wire/cpp/image.hpp"

namespace gpupool::guest {

namespace {

// The start of each entry, as nvcc 11 to 13 write it.
struct EntryHeader {
  u16 kind;
  u16 version;
  u32 header_bytes;
  u64 payload_bytes;
  u32 compressed_bytes;
  u32 options_place;
  u32 code_version;
  u32 architecture;
};
static_assert(sizeof(EntryHeader) == 32);

constexpr u16 kPtx = 1;
constexpr u16 kCubin = 2;

bool usable(const EntryHeader& entry, std::span<const Architecture> devices) {
  // Other kinds (code for the linker) say less about where they fit.
  if (entry.kind != kPtx && entry.kind != kCubin) return true;
  return std::any_of(devices.begin(), devices.end(), [&entry](Architecture device) {
    // PTX runs on its architecture and all later ones; machine code on later ones of the same generation
    // (CUDA programming guide, "Binary compatibility").
    return entry.architecture <= device && (entry.kind == kPtx || entry.architecture / 10 == device / 10);
  });
}

FatbinSelection whole(std::span<const u8> fatbin) {
  return {{}, {fatbin}, fatbin.size()};
}

}  // namespace

FatbinSelection select_entries(std::span<const u8> fatbin, std::span<const Architecture> devices) {
  wire::FatbinHeader header;
  std::memcpy(&header, fatbin.data(), sizeof header);
  FatbinSelection chosen;
  u64 kept = 0;
  u64 place = header.header_bytes;
  while (place < fatbin.size()) {
    if (fatbin.size() - place < sizeof(EntryHeader)) return whole(fatbin);
    EntryHeader entry;
    std::memcpy(&entry, fatbin.data() + place, sizeof entry);
    const u64 left = fatbin.size() - place;
    if (entry.header_bytes < sizeof(EntryHeader) || entry.header_bytes > left ||
        entry.payload_bytes > left - entry.header_bytes)
      return whole(fatbin);
    const u64 bytes = entry.header_bytes + entry.payload_bytes;
    if (usable(entry, devices)) {
      kept += bytes;
      std::vector<std::span<const u8>>& entries = chosen.entries;
      if (!entries.empty() && entries.back().data() + entries.back().size() == fatbin.data() + place)
        entries.back() = {entries.back().data(), entries.back().size() + bytes};
      else
        entries.push_back(fatbin.subspan(place, bytes));
    }
    place += bytes;
  }
  if (kept == 0 || kept == header.payload_bytes) return whole(fatbin);
  chosen.header.assign(fatbin.begin(), fatbin.begin() + header.header_bytes);
  header.payload_bytes = kept;
  std::memcpy(chosen.header.data(), &header, sizeof header);
  chosen.bytes = header.header_bytes + kept;
  return chosen;
}

}  // namespace gpupool::guest
