#include <doctest/doctest.h>

#include <string>
#include <string_view>

#include "guest/runtime/manual/md2.hpp"

namespace gpupool::guest {
namespace {

std::string hexadecimal(const Md2Digest& digest) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const u8 byte : digest) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

std::span<const u8> bytes(std::string_view text) {
  return {reinterpret_cast<const u8*>(text.data()), text.size()};
}

}  // namespace

TEST_CASE("MD2 gives the digests of RFC 1319, appendix A.5") {
  CHECK(hexadecimal(md2(bytes(""))) == "8350e5a3e24c153df2275c9f80692773");
  CHECK(hexadecimal(md2(bytes("a"))) == "32ec01ec4a6dac72c0ab96fb34c0b5d1");
  CHECK(hexadecimal(md2(bytes("abc"))) == "da853b0d3f88d99b30283a69e6ded6bb");
  CHECK(hexadecimal(md2(bytes("message digest"))) == "ab4f496bfb2a530b219ff33031fe06b0");
  CHECK(hexadecimal(md2(bytes("abcdefghijklmnopqrstuvwxyz"))) == "4e8ddff3650292ab5a4108c3aa47940b");
  CHECK(hexadecimal(md2(bytes("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"))) ==
        "da33def2a42df13975352846c30338cd");
  CHECK(hexadecimal(
            md2(bytes("12345678901234567890123456789012345678901234567890123456789012345678901234567890"))) ==
        "d5976f79d83d3a0dc9806c3c66f3efd8");
}

// Made with pycryptodome: HMAC.new(key, message, digestmod=MD2).hexdigest()
TEST_CASE("HMAC over MD2 agrees with another implementation") {
  CHECK(hexadecimal(hmac_md2(bytes("key"), bytes("The quick brown fox"))) ==
        "7533ee1790955a417a36c34e987bf33f");
  CHECK(hexadecimal(hmac_md2(bytes(""), bytes(""))) == "6f6e031223b36cd2a997787a03d16bf5");
  CHECK(hexadecimal(hmac_md2(bytes("0123456789abcdef"), bytes("block-sized key"))) ==
        "2df8c869b2a5e349dbee54db6163df7e");
  CHECK(hexadecimal(hmac_md2(bytes("a key that is longer than one block of MD2"), bytes("long key"))) ==
        "4bb3c5caf6ec344ad1225b1afee2b092");
}

}  // namespace gpupool::guest
