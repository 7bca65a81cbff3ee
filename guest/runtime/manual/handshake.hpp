// The handshake that NVIDIA's runtime makes with its driver (export table d4082055, slot 1). It covers
// addresses and the process id of the program that asks, so it can only be answered inside it.
#pragma once

#include <array>
#include <span>

#include "guest/runtime/manual/md2.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::guest {

struct HandshakeDevice {
  std::array<u8, 16> uuid{};
  i32 pci_domain = 0;
  i32 pci_bus = 0;
  i32 pci_device = 0;
};

// Everything that the answer depends on besides the devices.
struct HandshakeQuestion {
  u32 driver_version = 0;
  u32 version = 0;  // what the runtime passes; its last digit chooses how to answer
  u32 process = 0;
  u32 thread = 0;           // low half of pthread_self()
  u64 runtime_table = 0;    // address of table 6bd5fb6c
  u64 handshake_table = 0;  // address of table d4082055
  u64 function = 0;         // address of its slot 1
  u64 unix_seconds = 0;
};

std::array<u64, 2> answer_handshake(const HandshakeQuestion& question,
                                    std::span<const HandshakeDevice> devices);

}  // namespace gpupool::guest
