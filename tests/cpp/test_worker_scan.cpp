// Which images may print, whatever they are packed in.
#include <doctest/doctest.h>

#include <fstream>
#include <iterator>
#include <string>

#include "hostd/worker/image_scan.hpp"

namespace gpupool::worker {
namespace {

std::string kernel_file(const char* name) {
  std::ifstream file(std::string(GPUPOOL_SOURCE_DIR) + "/tests/kernels/" + name, std::ios::binary);
  REQUIRE(file.is_open());
  return {std::istreambuf_iterator<char>(file), {}};
}

bool prints(const std::string& image) {
  return may_print({reinterpret_cast<const u8*>(image.data()), image.size()});
}

}  // namespace

TEST_CASE("texts") {
  const std::string nul(1, '\0');
  CHECK(prints(kernel_file("output.ptx") + nul));
  CHECK_FALSE(prints(kernel_file("basic.ptx") + nul));
}

TEST_CASE("fatbins, compressed or not") {
  for (const char* name : {"basic_plain.fatbin", "basic_lz4.fatbin", "basic_zstd.fatbin"})
    CHECK_FALSE(prints(kernel_file(name)));
}

TEST_CASE("what cannot be looked into is taken to print") {
  std::string damaged = kernel_file("basic_zstd.fatbin");
  for (size_t i = damaged.size() / 2; i < damaged.size() / 2 + 64; ++i) damaged[i] = '\x5a';
  CHECK(prints(damaged));
  std::string longer = kernel_file("basic_plain.fatbin");
  longer[16 + 8] = '\x7f';  // the first entry now claims other bytes than it has
  CHECK(prints(longer));
  CHECK(
      prints(std::string("\x7f"
                         "ELF")));
  CHECK(prints(""));
}

}  // namespace gpupool::worker
