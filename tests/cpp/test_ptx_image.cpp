// Finding PTX in images. basic_*.fatbin: nvcc 13.0 -fatbin -arch=compute_75 -compress-mode=speed|size|none
// basic.cu
#include "hostd/compression/compression.hpp"
#include "tests/cpp/ptx_machine.hpp"

namespace gpupool::softgpu::test {
namespace {

void put(std::string& image, u64 value, u32 bytes) {
  for (u32 i = 0; i < bytes; ++i) image.push_back(static_cast<char>(value >> (8 * i)));
}

// A fatbin entry as nvcc writes it.
std::string entry(u16 kind, u32 architecture, const std::string& payload) {
  std::string image;
  put(image, kind, 2);
  put(image, 0x0101, 2);
  put(image, 64, 4);
  put(image, payload.size(), 8);
  put(image, 0, 8);
  put(image, 0x0008'0001, 4);
  put(image, architecture, 4);
  put(image, 0, 8);
  put(image, 0x11, 8);
  put(image, 0, 8);
  put(image, 0, 8);
  return image + payload;
}

std::string fatbin(const std::string& entries) {
  std::string image;
  put(image, 0xBA55ED50, 4);
  put(image, 1, 2);
  put(image, 16, 2);
  put(image, entries.size(), 8);
  return image + entries;
}

std::string ptx_for(u32 target) {
  return ".version 8.0\n.target sm_" + std::to_string(target) + "\n.address_size 64\n";
}

std::string found(const std::string& image, u64 architecture = 90) {
  std::string ptx, error;
  return find_ptx(image.data(), architecture, ptx, error) ? ptx : "error: " + error;
}

}  // namespace

TEST_CASE("PTX comes out of every compression as it went in") {
  const std::string plain = found(kernel_file("basic_plain.fatbin"));
  CHECK(plain.size() > 40000);
  CHECK(plain.find(".entry vector_add") != std::string::npos);
  CHECK(found(kernel_file("basic_lz4.fatbin")) == plain);
  CHECK(found(kernel_file("basic_zstd.fatbin")) == plain);
  std::string error;
  CHECK(load_program(plain, error) != nullptr);
}

TEST_CASE("the highest target that the device can run is taken") {
  const std::string both = fatbin(entry(1, 75, ptx_for(75)) + entry(2, 80, "machine code") +
                                  entry(1, 86, ptx_for(86)) + entry(1, 100, ptx_for(100)));
  CHECK(found(both) == ptx_for(86));
  CHECK(found(both, 100) == ptx_for(100));
  CHECK(found(both, 80) == ptx_for(75));
  CHECK(found(both, 70).starts_with("error: "));
}

TEST_CASE("a wrapper leads to its fatbin, text is taken as it is") {
  const std::string image = fatbin(entry(1, 75, ptx_for(75)));
  struct {
    u32 magic = 0x466243B1;
    u32 version = 1;
    const void* data;
    const void* more = nullptr;
  } wrapper{.data = image.data()};
  std::string ptx, error;
  REQUIRE(find_ptx(&wrapper, 90, ptx, error));
  CHECK(ptx == ptx_for(75));
  CHECK(found(ptx_for(60)) == ptx_for(60));
}

TEST_CASE("images without PTX say what they hold") {
  CHECK(found(fatbin(entry(2, 90, "x") + entry(2, 100, "y"))) ==
        "error: image holds only machine code for sm_90, sm_100: the software GPU needs PTX");
  CHECK(found(std::string("\x7f"
                          "ELF\2\1\1"))
            .find("only machine code") != std::string::npos);
  CHECK(found("neither").starts_with("error: image is neither PTX nor a fatbin"));
  CHECK(found("").starts_with("error: "));
  CHECK(found(fatbin(entry(1, 75, "") + "truncated")).find("malformed") == std::string::npos);
}

TEST_CASE("damaged compressed data are refused, never read beyond") {
  for (const char* name : {"basic_lz4.fatbin", "basic_zstd.fatbin"}) {
    const std::string image = kernel_file(name);
    const size_t start = 16 + 80;
    const std::vector<u8> data(image.begin() + start, image.end());
    const bool lz4 = std::string(name) == "basic_lz4.fatbin";
    const auto decompress = [&](std::span<const u8> bytes, std::string& out) {
      return lz4 ? compression::decompress_lz4(bytes, 60000, out)
                 : compression::decompress_zstd(bytes, 60000, out);
    };
    u32 refused = 0;
    for (int round = 0; round < 300; ++round) {
      // A copy of its exact size, so that the address sanitizer sees a step beyond the end.
      std::vector<u8> damaged(data.begin(),
                              data.begin() + static_cast<std::ptrdiff_t>(
                                                 round % 3 == 0 ? generator()() % data.size() : data.size()));
      for (u64 i = 0; i < 1 + generator()() % 4 && !damaged.empty(); ++i)
        damaged[generator()() % damaged.size()] = static_cast<u8>(generator()());
      std::string out;
      refused += decompress(damaged, out) ? 0 : 1;
      CHECK(out.size() <= 60000);
    }
    CHECK(refused > (lz4 ? 30 : 200));
  }
}

}  // namespace gpupool::softgpu::test
