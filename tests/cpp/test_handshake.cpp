#include <doctest/doctest.h>

#include "guest/runtime/manual/handshake.hpp"

namespace gpupool::guest {
namespace {

HandshakeQuestion question(u32 version) {
  return {.driver_version = 13000,
          .version = version,
          .process = 4242,
          .thread = 0x89ab'cdef,
          .runtime_table = 0x1111'2222'3333'4444,
          .handshake_table = 0x5555'6666'7777'8888,
          .function = 0x9999'aaaa'bbbb'cccc,
          .unix_seconds = 1'700'000'000};
}

std::array<HandshakeDevice, 2> two_devices() {
  std::array<HandshakeDevice, 2> devices;
  for (u8 i = 0; i < 16; ++i) {
    devices[0].uuid[i] = i;
    devices[1].uuid[i] = static_cast<u8>(16 + i);
  }
  devices[0].pci_bus = 6;
  devices[1].pci_domain = 1;
  devices[1].pci_bus = 7;
  devices[1].pci_device = 2;
  return devices;
}

using Answer = std::array<u64, 2>;

}  // namespace

TEST_CASE("versions that end in 0 and 1 have fixed answers") {
  CHECK(answer_handshake(question(12090), two_devices()) == Answer{0x3341181c03cb675c, 0x8ed383aa1f4cd1e8});
  CHECK(answer_handshake(question(12091), two_devices()) == Answer{0x1841181c03cb675c, 0x8ed383aa1f4cd1e8});
}

// Computed with pycryptodome's HMAC over MD2 from the description in handshake.cpp.
TEST_CASE("other versions are answered by the keyed digest of everything asked") {
  CHECK(answer_handshake(question(12092), two_devices()) == Answer{0x3ed2b0519337ad7b, 0x9000f719874e5874});
}

TEST_CASE("every part of the question changes the answer") {
  const auto devices = two_devices();
  const Answer base = answer_handshake(question(12092), devices);
  HandshakeQuestion other = question(12092);
  other.process = 4243;
  CHECK(answer_handshake(other, devices) != base);
  other = question(12092);
  other.function += 1;
  CHECK(answer_handshake(other, devices) != base);
  auto moved = devices;
  moved[1].pci_bus = 8;
  CHECK(answer_handshake(question(12092), moved) != base);
  CHECK(answer_handshake(question(12092), std::span(devices).first(1)) != base);
}

}  // namespace gpupool::guest
