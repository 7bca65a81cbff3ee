#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "wire/cpp/sha256.hpp"

namespace gpupool::wire {

namespace {

std::string hex(const Digest& digest) {
  std::string text;
  for (const u8 byte : digest) {
    text += "0123456789abcdef"[byte >> 4];
    text += "0123456789abcdef"[byte & 15];
  }
  return text;
}

std::span<const u8> bytes_of(const std::string& text) {
  return {reinterpret_cast<const u8*>(text.data()), text.size()};
}

}  // namespace

// The first two are FIPS 180's examples, the others what sha256sum says.
TEST_CASE("digests are those of SHA-256, with and without the processor's instructions") {
  const std::string long_text(1'000'000, 'a');
  for (const bool fast : {false, detail::has_sha_instructions()}) {
    CHECK(hex(sha256(bytes_of("abc"), fast)) ==
          "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK(hex(sha256(bytes_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"), fast)) ==
          "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK(hex(sha256(bytes_of(""), fast)) ==
          "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK(hex(sha256(bytes_of(long_text), fast)) ==
          "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  }
}

TEST_CASE("both ways agree at every length around a block's") {
  std::vector<u8> data(300);
  for (u64 i = 0; i < data.size(); ++i) data[i] = static_cast<u8>(i * 7);
  for (u64 size = 0; size <= data.size(); ++size)
    CHECK(sha256({data.data(), size}, false) == sha256({data.data(), size}));
}

}  // namespace gpupool::wire
