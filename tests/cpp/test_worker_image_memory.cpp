// How much device memory code takes, read from the image: PTX variables, sections of machine code, fatbins.
#include <doctest/doctest.h>
#include <elf.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "hostd/worker/array_bytes.hpp"
#include "hostd/worker/image_memory.hpp"
#include "hostd/worker/ptx_variables.hpp"
#include "wire/cpp/image.hpp"

namespace gpupool::worker {
namespace {

std::vector<u8> cubin(u64 code, u64 variables) {
  Elf64_Ehdr header{};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_shoff = sizeof header;
  header.e_shentsize = sizeof(Elf64_Shdr);
  Elf64_Shdr sections[4]{};
  sections[1].sh_type = SHT_PROGBITS;
  sections[1].sh_flags = SHF_ALLOC | SHF_EXECINSTR;
  sections[1].sh_offset = sizeof header + sizeof sections;
  sections[1].sh_size = code;
  sections[2].sh_type = SHT_NOBITS;
  sections[2].sh_flags = SHF_ALLOC | SHF_WRITE;
  sections[2].sh_size = variables;
  sections[3].sh_type = SHT_STRTAB;  // not there at run time
  sections[3].sh_offset = sizeof header;
  sections[3].sh_size = 16;
  header.e_shnum = 4;
  std::vector<u8> image(sizeof header + sizeof sections + code);
  std::memcpy(image.data(), &header, sizeof header);
  std::memcpy(image.data() + sizeof header, sections, sizeof sections);
  return image;
}

std::vector<u8> fatbin(const std::vector<std::pair<wire::FatbinEntry, std::vector<u8>>>& entries) {
  wire::FatbinHeader header{wire::kFatbinMagic, 1, sizeof(wire::FatbinHeader), 0};
  std::vector<u8> image(sizeof header);
  for (auto [entry, payload] : entries) {
    entry.header_bytes = sizeof entry;
    entry.payload_bytes = payload.size();
    const auto* head = reinterpret_cast<const u8*>(&entry);
    image.insert(image.end(), head, head + sizeof entry);
    image.insert(image.end(), payload.begin(), payload.end());
  }
  header.payload_bytes = image.size() - sizeof header;
  std::memcpy(image.data(), &header, sizeof header);
  return image;
}

wire::FatbinEntry entry(u16 kind, u32 architecture) {
  wire::FatbinEntry one{};
  one.kind = kind;
  one.architecture = architecture;
  return one;
}

std::vector<u8> text(const std::string& ptx) {
  return {ptx.begin(), ptx.end() + 1};  // with its NUL
}

}  // namespace

TEST_CASE("variables of PTX") {
  CHECK(ptx_variable_bytes("") == 0);
  CHECK(ptx_variable_bytes(".visible .global .align 4 .b8 data[1048576];") == 1048576);
  CHECK(ptx_variable_bytes(".global .u32 one; .global .f64 two = 0d3ff0000000000000;") == 12);
  CHECK(ptx_variable_bytes(".const .align 16 .v4 .f32 table[2][3];") == 96);
  CHECK(ptx_variable_bytes(".global .b64 a, b[4], c;") == 48);
  CHECK(ptx_variable_bytes(".global .attribute(.managed) .align 8 .u64 m[0x10];") == 128);
  CHECK(ptx_variable_bytes(".global .s32 values[] = {1, 2, {3, 4}, 5}; .global .u8 end;") == 21);
  CHECK(ptx_variable_bytes(".global .b8 product[2*512 + 1];") == 1025);
  CHECK(ptx_variable_bytes(".extern .global .b8 elsewhere[100]; .global .b8 here;") == 1);
  CHECK(ptx_variable_bytes(".global .texref t; .global .b128 wide;") == 24);
  CHECK(ptx_variable_bytes("/* .global .b8 a[9]; */ // .global .b8 b[9];\n.global .b8 c[2];") == 2);
  CHECK(ptx_variable_bytes(".file 1 \".global .b8 a[9];\"") == 0);
  CHECK(ptx_variable_bytes(".entry f(.param .u64 .ptr .global .align 4 p) { .global .b8 inner[7]; "
                           "ld.global.u32 %r1, [%rd1]; cvta.to.global.u64 %rd2, %rd1; .reg .b32 %r<9>; "
                           ".shared .b8 s[99]; .local .b8 l[99]; st.const.b8 [x], 1; ret; }") == 7);
}

TEST_CASE("sizes that cannot be read, or overflow, are as large as can be") {
  CHECK(ptx_variable_bytes(".global .b8 a[SIZE];") == ~u64{0});
  CHECK(ptx_variable_bytes(".global .b8 a[1 - 0];") == ~u64{0});
  CHECK(ptx_variable_bytes(".global .b64 a[0xffffffffffffffff];") == ~u64{0});
  CHECK(ptx_variable_bytes(".global .b8 a[99999999999999999999999];") == ~u64{0});
  CHECK(ptx_variable_bytes(".global .b99x a;") == ~u64{0});
  for (const char* cut :
       {".global", ".global .b8", ".global .b8 a[", ".global .b8 a[] = {", ".global .align"})
    CHECK_NOTHROW(ptx_variable_bytes(cut));
}

TEST_CASE("machine code takes the sections that are there while it runs") {
  const std::vector<u8> image = cubin(4096, 1 << 20);
  CHECK(image_device_bytes(image, 90) == (1 << 20) + 4096);
  CHECK(code_device_bytes(image.data(), 90) == (1 << 20) + 4096);
}

TEST_CASE("of a fatbin what the device would load") {
  const std::vector<u8> image = fatbin({{entry(wire::FatbinEntry::kCubin, 80), cubin(256, 1000)},
                                        {entry(wire::FatbinEntry::kCubin, 90), cubin(256, 3000)},
                                        {entry(wire::FatbinEntry::kCubin, 100), cubin(256, 9000)},
                                        {entry(wire::FatbinEntry::kPtx, 90), text(".global .b8 a[77];")}});
  CHECK(image_device_bytes(image, 80) == 1256);
  CHECK(image_device_bytes(image, 86) == 1256);
  CHECK(image_device_bytes(image, 90) == 3256);
  CHECK(image_device_bytes(image, 120) == 77);
  CHECK(image_device_bytes(image, 75) == 0);
  const void* prelinked[] = {image.data(), image.data(), nullptr};
  const std::vector<u8> linked = fatbin({{entry(wire::FatbinEntry::kCubin, 80), cubin(16, 0)}});
  const wire::FatbinWrapper wrapper{wire::kFatbinWrapperMagic, 2, linked.data(), prelinked};
  CHECK(code_device_bytes(&wrapper, 80) == 16);
  CHECK(code_device_bytes(&wrapper, 90) == 2 * 3256);
}

// What nvcc wrote, in each compression: they hold the same.
TEST_CASE("compressed fatbins are looked into") {
  u64 expected = 0;
  for (const char* name : {"basic_plain", "basic_lz4", "basic_zstd"}) {
    std::ifstream file(std::string(GPUPOOL_SOURCE_DIR "/tests/kernels/") + name + ".fatbin",
                       std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    REQUIRE(!bytes.empty());
    const std::span image(reinterpret_cast<const u8*>(bytes.data()), bytes.size());
    for (const u32 architecture : {80u, 90u}) {
      const u64 found = image_device_bytes(image, architecture);
      CAPTURE(name);
      CHECK(found < bytes.size() * 20);
      if (architecture != 80) continue;
      if (expected == 0) expected = found;
      CHECK(found == expected);
    }
  }
}

TEST_CASE("bytes of arrays") {
  CUDA_ARRAY3D_DESCRIPTOR shape{};
  shape.Width = 100;
  shape.Height = 50;
  shape.NumChannels = 4;
  shape.Format = CU_AD_FORMAT_FLOAT;
  CHECK(array_bytes(shape) == 100 * 50 * 16);
  shape.Format = CU_AD_FORMAT_HALF;
  CHECK(array_bytes(shape) == 100 * 50 * 8);
  shape.Format = CU_AD_FORMAT_BC1_UNORM;  // 25 blocks by 13
  CHECK(array_bytes(shape) == 25 * 13 * 8);
  shape.Format = CU_AD_FORMAT_BC7_UNORM;
  CHECK(array_bytes(shape) == 25 * 13 * 16);
  CHECK(array_bytes(shape, 3) == 3 * 2 * 16);  // 12 by 6 elements
  shape.Format = CU_AD_FORMAT_NV12;
  CHECK(array_bytes(shape) == 100 * 50 * 3 / 2);
  shape.Format = CU_AD_FORMAT_UNSIGNED_INT8;
  shape.NumChannels = 1;
  shape.Depth = 6;
  CHECK(array_bytes(shape, 1) == 50 * 25 * 3);
  shape.Flags = CUDA_ARRAY3D_LAYERED;
  CHECK(array_bytes(shape, 1) == 50 * 25 * 6);
  shape.Flags = CUDA_ARRAY3D_SPARSE;
  CHECK(array_bytes(shape) == 0);
  shape = {};
  shape.Width = 8;
  shape.Format = CU_AD_FORMAT_UNSIGNED_INT8;
  shape.NumChannels = 1;
  CHECK(mipmapped_bytes(shape, 2) == 12);
  CHECK(mipmapped_bytes(shape, 99) == 15);  // 8, 4, 2, 1
  shape.Width = shape.Height = ~u64{0};
  CHECK(array_bytes(shape) == ~u64{0});
}

}  // namespace gpupool::worker
