#include "guest/runtime/manual/image_fatbin.hpp"

#include <algorithm>
#include <cstring>

#include "wire/cpp/image.hpp"

namespace gpupool::guest {

namespace {

// The part of an entry that every version of nvcc writes.
constexpr u64 kEntryBytes = offsetof(wire::FatbinEntry, name_offset);

bool usable(const wire::FatbinEntry& entry, std::span<const Architecture> devices) {
  // Other kinds (code for the linker) say less about where they fit.
  if (entry.kind != wire::FatbinEntry::kPtx && entry.kind != wire::FatbinEntry::kCubin) return true;
  return std::any_of(devices.begin(), devices.end(), [&entry](Architecture device) {
    // PTX runs on its architecture and all later ones; machine code on later ones of the same generation
    // (CUDA programming guide, "Binary compatibility").
    return entry.architecture <= device &&
           (entry.kind == wire::FatbinEntry::kPtx || entry.architecture / 10 == device / 10);
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
    if (fatbin.size() - place < kEntryBytes) return whole(fatbin);
    wire::FatbinEntry entry{};
    std::memcpy(&entry, fatbin.data() + place, kEntryBytes);
    const u64 left = fatbin.size() - place;
    if (entry.header_bytes < kEntryBytes || entry.header_bytes > left ||
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
