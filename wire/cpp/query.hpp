// What a guest asks hostd without opening a session: its vGPUs, for NVML. A Query stands where a Hello would,
// on the same endpoints and with the same token; hostd itself answers with a Report (or, to refuse, with a
// Welcome) and closes. Fixed little-endian structs; a Report is followed by its GPUs, then its processes.
// hostd's Python twin of these structs is wire/query.py; tests/wire/test_query.py holds the two together.
#pragma once

#include <type_traits>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kQueryMagic = 0x534b'5341;   // "ASKS"
inline constexpr u32 kReportMagic = 0x5452'4f50;  // "PORT"
inline constexpr u32 kReportMaxGpus = 16;
inline constexpr u32 kReportMaxProcesses = 4096;
inline constexpr u32 kUnknown = 0xffff'ffff;  // a number that the host does not know or does not tell

struct Query {
  u32 magic = kQueryMagic;
  u16 protocol_major = 0;
  u16 protocol_minor = 0;
  u32 bytes = 0;            // sizeof(Query)
  u32 compute_percent = 0;  // as a Hello of this process would ask; 0: the host's default
  u32 memory_mib = 0;       // likewise
  u32 pid = 0;              // of this process in its own pid namespace, as in a Hello; since 1.2
  char client_version[32] = {};
  u8 token[64] = {};
  // Since 1.2.
  char vgpu[64] = {};  // as in a Hello
};
static_assert(std::is_trivially_copyable_v<Query> && sizeof(Query) == 184);

struct Report {
  u32 magic = kReportMagic;
  u16 protocol_major = 0;
  u16 protocol_minor = 0;
  u32 bytes = 0;          // sizeof(Report): a later minor version may append
  u32 gpu_count = 0;      // ordered by PCI bus id, as NVML orders them
  u32 gpu_bytes = 0;      // sizeof(GpuReport), likewise
  u32 process_count = 0;  // of this guest only
  u32 process_bytes = 0;
  u32 cuda_version = 0;  // of the host's libcuda; 0: not known
  char driver_version[80] = {};
  char host_version[32] = {};
};
static_assert(std::is_trivially_copyable_v<Report> && sizeof(Report) == 144);

// One vGPU as this guest may know it. Constants of the model and the guest's own use, nothing else: what
// other tenants do to the card (memory, load, power, temperature, clocks) is not in here.
struct GpuReport {
  char name[96] = {};
  char uuid[48] = {};        // "GPU-..."
  char pci_bus_id[32] = {};  // "00000000:1B:00.0"
  u64 total_bytes = 0;       // the quota, else the card's memory
  u64 reserved_bytes = 0;    // the driver's own share of total_bytes
  u64 used_bytes = 0;        // by this guest's sessions
  u32 pci_device_id = kUnknown;
  u32 pci_subsystem_id = kUnknown;
  u32 compute_major = kUnknown;
  u32 compute_minor = kUnknown;
  u32 architecture = kUnknown;  // NVML_DEVICE_ARCH_*
  u32 brand = kUnknown;         // nvmlBrandType_t
  u32 multiprocessors = kUnknown;
  u32 cores = kUnknown;
  u32 memory_bus_bits = kUnknown;
  u32 max_sm_clock_mhz = kUnknown;
  u32 max_memory_clock_mhz = kUnknown;
  u32 max_pcie_generation = kUnknown;
  u32 max_pcie_width = kUnknown;
  u32 ecc_enabled = kUnknown;
  u32 persistence_enabled = kUnknown;
  u32 compute_percent = kUnknown;      // the vGPU's share
  u32 utilization_percent = kUnknown;  // share of the past second with work of this guest outstanding
  // Which of the report's GPUs (bit n: the n-th) it reaches directly, by nvmlGpuP2PCapsIndex_t 0 to 4.
  u32 peers_read = 0;
  u32 peers_write = 0;
  u32 peers_nvlink = 0;
  u32 peers_atomics = 0;
  u32 peers_pci = 0;
};
static_assert(std::is_trivially_copyable_v<GpuReport> && sizeof(GpuReport) == 288);

struct ProcessReport {
  u32 gpu = 0;  // index into the report's GPUs
  u32 pid = 0;  // in the guest's own pid namespace, as the process said in its Hello
  u64 used_bytes = 0;
  u32 utilization_percent = kUnknown;
  u32 reserved = 0;
  char program[64] = {};
};
static_assert(std::is_trivially_copyable_v<ProcessReport> && sizeof(ProcessReport) == 88);

}  // namespace gpupool::wire
