#include <doctest/doctest.h>
#include <elf.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "guest/runtime/manual/image_fatbin.hpp"
#include "wire/cpp/image.hpp"

namespace gpupool::wire {

namespace {

// Bytes that end where readable memory ends: reading one further is a crash.
class AtTheEdge {
 public:
  explicit AtTheEdge(const std::vector<u8>& bytes) {
    const auto page = static_cast<u64>(sysconf(_SC_PAGESIZE));
    pages_ = (bytes.size() + page - 1) / page * page + page;
    base_ =
        static_cast<u8*>(mmap(nullptr, pages_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    REQUIRE(mprotect(base_ + pages_ - page, page, PROT_NONE) == 0);
    start_ = base_ + pages_ - page - bytes.size();
    if (!bytes.empty()) std::memcpy(start_, bytes.data(), bytes.size());
  }
  ~AtTheEdge() { munmap(base_, pages_); }
  AtTheEdge(const AtTheEdge&) = delete;
  AtTheEdge& operator=(const AtTheEdge&) = delete;
  [[nodiscard]] const void* start() const { return start_; }

 private:
  u8* base_ = nullptr;
  u8* start_ = nullptr;
  u64 pages_ = 0;
};

template <typename T>
void put(std::vector<u8>& bytes, u64 place, const T& value) {
  if (bytes.size() < place + sizeof(T)) bytes.resize(place + sizeof(T));
  std::memcpy(bytes.data() + place, &value, sizeof(T));
}

// A cubin with one section of `size` bytes at `place`; section headers at 64, program headers after them.
std::vector<u8> cubin(u64 place, u64 size) {
  std::vector<u8> bytes;
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_shoff = 64;
  header.e_shentsize = sizeof(Elf64_Shdr);
  header.e_shnum = 3;
  header.e_phoff = 64 + 3 * sizeof(Elf64_Shdr);
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 1;
  put(bytes, 0, header);
  Elf64_Shdr section{};
  section.sh_type = SHT_PROGBITS;
  section.sh_offset = place;
  section.sh_size = size;
  put(bytes, 64, Elf64_Shdr{});
  put(bytes, 64 + sizeof(Elf64_Shdr), section);
  section.sh_type = SHT_NOBITS;  // takes no room in the file, whatever its size says
  section.sh_size = 1ull << 40;
  put(bytes, 64 + 2 * sizeof(Elf64_Shdr), section);
  Elf64_Phdr segment{};
  segment.p_type = PT_LOAD;
  segment.p_filesz = 0;
  put(bytes, header.e_phoff, segment);
  if (bytes.size() < place + size) bytes.resize(place + size);
  return bytes;
}

std::vector<u8> fatbin(u64 payload) {
  std::vector<u8> bytes;
  put(bytes, 0, FatbinHeader{kFatbinMagic, 1, 16, payload});
  bytes.resize(16 + payload);
  return bytes;
}

}  // namespace

TEST_CASE("PTX ends with its NUL") {
  const std::string text = ".version 8.0\n";
  const ImageExtent extent = measure_image(text.c_str(), kMaxImageBytes);
  CHECK(extent.kind == ImageKind::ptx);
  CHECK(extent.bytes == text.size() + 1);
  CHECK(measure_image(text.c_str(), text.size()).kind == ImageKind::invalid);  // the NUL is beyond the limit
  CHECK(measure_image("", kMaxImageBytes).kind == ImageKind::invalid);
  CHECK(measure_image("\x01\x02", kMaxImageBytes).kind == ImageKind::invalid);
  CHECK(measure_image("\xc3\xa4 "
                      "text",
                      kMaxImageBytes)
            .kind == ImageKind::invalid);
}

// A driver takes it for what it is and follows its pointers, which in the worker are the client's to choose.
TEST_CASE("a wrapper is no image") {
  const FatbinWrapper wrapper{kFatbinWrapperMagic, 1, "anything", nullptr};
  CHECK(measure_image(&wrapper, sizeof wrapper).kind == ImageKind::invalid);
}

TEST_CASE("a cubin goes as far as its tables and sections say") {
  const std::vector<u8> bytes = cubin(1000, 500);
  const AtTheEdge image(bytes);
  const ImageExtent extent = measure_image(image.start(), kMaxImageBytes);
  CHECK(extent.kind == ImageKind::cubin);
  CHECK(extent.bytes == 1500);
  CHECK(measure_image(image.start(), 1500).bytes == 1500);
  CHECK(measure_image(image.start(), 1499).kind == ImageKind::invalid);
  CHECK(measure_image(image.start(), 63).kind == ImageKind::invalid);
  // Tables only.
  CHECK(measure_image(cubin(100, 0).data(), kMaxImageBytes).bytes ==
        64 + 3 * sizeof(Elf64_Shdr) + sizeof(Elf64_Phdr));
}

TEST_CASE("a cubin whose sizes overflow is refused") {
  CHECK(measure_image(cubin(64, 64).data(), kMaxImageBytes).kind == ImageKind::cubin);
  std::vector<u8> bytes = cubin(64, 64);
  for (const u64 wild : {u64{~0ull}, u64{~0ull - 63}, kMaxImageBytes + 1, u64{1ull << 63}}) {
    put(bytes, 64 + sizeof(Elf64_Shdr) + offsetof(Elf64_Shdr, sh_size), wild);
    CHECK(measure_image(bytes.data(), bytes.size()).kind == ImageKind::invalid);
    put(bytes, 64 + sizeof(Elf64_Shdr) + offsetof(Elf64_Shdr, sh_size), u64{64});
    put(bytes, 64 + sizeof(Elf64_Shdr) + offsetof(Elf64_Shdr, sh_offset), wild);
    CHECK(measure_image(bytes.data(), bytes.size()).kind == ImageKind::invalid);
    put(bytes, 64 + sizeof(Elf64_Shdr) + offsetof(Elf64_Shdr, sh_offset), u64{64});
  }
  put(bytes, offsetof(Elf64_Ehdr, e_shoff), kMaxImageBytes * 2);
  CHECK(measure_image(bytes.data(), bytes.size()).kind == ImageKind::invalid);
}

TEST_CASE("a fatbin is as long as its header says") {
  const std::vector<u8> bytes = fatbin(300);
  const AtTheEdge image(bytes);
  CHECK(measure_image(image.start(), kMaxImageBytes).kind == ImageKind::fatbin);
  CHECK(measure_image(image.start(), kMaxImageBytes).bytes == 316);
  CHECK(measure_image(image.start(), 315).kind == ImageKind::invalid);
  std::vector<u8> wild = bytes;
  put(wild, offsetof(FatbinHeader, payload_bytes), ~0ull - 8);
  CHECK(measure_image(wild.data(), wild.size()).kind == ImageKind::invalid);
  put(wild, offsetof(FatbinHeader, payload_bytes), u64{1});
  put(wild, offsetof(FatbinHeader, header_bytes), u16{8});
  CHECK(measure_image(wild.data(), wild.size()).kind == ImageKind::invalid);
}

TEST_CASE("whatever the bytes, nothing beyond the limit is read") {
  std::mt19937 random(20261123);
  const std::vector<std::vector<u8>> seeds = {cubin(700, 100), fatbin(200), {'.', 'v', 'e', 'r', 0}};
  for (int round = 0; round < 20000; ++round) {
    std::vector<u8> bytes = seeds[random() % seeds.size()];
    for (u32 change = random() % 6; change > 0; --change) {
      const u64 place = random() % bytes.size();
      bytes[place] = static_cast<u8>(random() % 3 == 0 ? 0xff : random());
    }
    bytes.resize(random() % (bytes.size() + 1));
    const AtTheEdge image(bytes);
    const ImageExtent extent = measure_image(image.start(), bytes.size());
    CHECK(extent.bytes <= bytes.size());
  }
}

TEST_CASE("a fatbin is sent without what no device can run") {
  using guest::select_entries;
  // Entries: machine code for 7.5, 8.0, 9.0, 10.0, PTX for 8.0 and 12.0, and something for the linker.
  std::vector<u8> bytes(16);
  std::vector<u64> places;
  const auto add = [&](u16 kind, u32 architecture, u64 payload) {
    places.push_back(bytes.size());
    const u64 place = bytes.size();
    put(bytes, place, kind);
    put(bytes, place + 4, u32{64});
    put(bytes, place + 8, payload);
    put(bytes, place + 28, architecture);
    bytes.resize(place + 64 + payload, static_cast<u8>(architecture));
  };
  add(2, 75, 8), add(2, 80, 16), add(1, 80, 24), add(2, 90, 32), add(2, 100, 40), add(1, 120, 48),
      add(8, 75, 56);
  places.push_back(bytes.size());
  put(bytes, 0, FatbinHeader{kFatbinMagic, 1, 16, bytes.size() - 16});

  const auto kept = [&](std::vector<u32> devices) {
    const guest::FatbinSelection chosen = select_entries(bytes, devices);
    std::vector<u8> sent = chosen.header;
    for (const std::span<const u8>& piece : chosen.entries)
      sent.insert(sent.end(), piece.begin(), piece.end());
    CHECK(sent.size() == chosen.bytes);
    CHECK(measure_image(sent.data(), sent.size()).bytes == sent.size());
    std::vector<u64> entries;
    for (u64 i = 0; i + 1 < places.size(); ++i) {
      const u64 size = places[i + 1] - places[i];
      for (u64 place = 16; place + size <= sent.size(); ++place)
        if (std::memcmp(sent.data() + place, bytes.data() + places[i], size) == 0) entries.push_back(i);
    }
    return entries;
  };
  CHECK(kept({90}) == std::vector<u64>{2, 3, 6});
  CHECK(kept({86}) == std::vector<u64>{1, 2, 6});
  CHECK(kept({75, 100}) == std::vector<u64>{0, 2, 4, 6});
  CHECK(kept({121}) == std::vector<u64>{2, 5, 6});
  CHECK(kept({75, 80, 90, 100, 120}).size() == 7);
}

TEST_CASE("a fatbin that is not laid out as expected is sent whole") {
  std::vector<u8> bytes = fatbin(100);
  const u32 devices[] = {90};
  for (const u32 header_bytes : {u32{0}, u32{31}, u32{101}, u32{~0u}}) {
    put(bytes, 16 + 4, header_bytes);
    const guest::FatbinSelection chosen = guest::select_entries(bytes, devices);
    CHECK(chosen.bytes == bytes.size());
    CHECK(chosen.header.empty());
  }
  put(bytes, 16 + 4, u32{64});
  put(bytes, 16 + 8, u64{~0ull});
  CHECK(guest::select_entries(bytes, devices).bytes == bytes.size());
}

}  // namespace gpupool::wire
