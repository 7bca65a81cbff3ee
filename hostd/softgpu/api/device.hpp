// The devices that this library presents: how many, how large, what they say about themselves.
#pragma once

#include <array>
#include <atomic>
#include <optional>
#include <span>
#include <string>

#include "hostd/softgpu/api/api.hpp"

namespace gpupool::softgpu {

inline constexpr int kComputeMajor = 8;  // what compilers then emit is what the engine was written for
inline constexpr int kComputeMinor = 0;
inline constexpr u32 kArchitecture = kComputeMajor * 10 + kComputeMinor;
inline constexpr int kDriverVersion = 13000;
inline constexpr u32 kMaxPtxVersion = 90;  // PTX ISA that came with CUDA 13.0
inline constexpr u32 kMaxDevices = 16;

// The machine model behind occupancy and launch limits; documented in docs/softgpu.md.
inline constexpr u32 kWarpSize = 32;
inline constexpr u32 kMaxThreadsPerBlock = 1024;
inline constexpr u32 kThreadsPerSm = 2048;
inline constexpr u32 kBlocksPerSm = 32;
inline constexpr u32 kRegistersPerSm = 65536;
inline constexpr u32 kSharedPerSm = 228 * 1024;
inline constexpr u32 kSharedReserved = 1024;  // taken from every block's share, as on the real thing
inline constexpr u32 kSharedPerBlock = 48 * 1024;
inline constexpr u32 kSharedPerBlockOptin = 227 * 1024;

inline constexpr int kLeastPriority = 0;
inline constexpr int kGreatestPriority = -5;

struct Device {
  int ordinal = 0;
  std::string name;
  CUuuid uuid{};
  int pci_bus = 0;
  std::string pci_bus_id;  // "0000:f0:00.0"
  u64 memory_bytes = 0;
  u32 multiprocessors = 0;  // CPU threads that run blocks
  std::atomic<u64> used_bytes{0};

  // Charges memory to the device, or says that there is not enough.
  bool charge(u64 bytes) {
    u64 used = used_bytes.load(std::memory_order_relaxed);
    do {
      if (bytes > memory_bytes - used) return false;
    } while (!used_bytes.compare_exchange_weak(used, used + bytes, std::memory_order_relaxed));
    return true;
  }
  void release(u64 bytes) { used_bytes.fetch_sub(bytes, std::memory_order_relaxed); }

  // The value of a CUdevice_attribute; nothing where the number means nothing.
  std::optional<int> attribute(int number) const;
};

// Reads the environment and makes the devices, once; called by cuInit. Throws Error.
void make_devices();
u32 device_count();
// The device, or Error INVALID_DEVICE.
Device& device_of(int ordinal);
// How many CPU threads run the blocks of one grid.
u32 engine_threads();
// What fresh memory holds, as that of a real device holds what was there before; 0 unless the environment
// says otherwise.
u8 leftover_byte();

}  // namespace gpupool::softgpu
