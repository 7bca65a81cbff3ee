#include "guest/runtime/manual/export_tables.hpp"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "guest/runtime/log.hpp"
#include "guest/runtime/manual/context.hpp"
#include "guest/runtime/manual/context_storage.hpp"
#include "guest/runtime/manual/device.hpp"
#include "guest/runtime/manual/export_slots.hpp"
#include "guest/runtime/manual/handshake.hpp"
#include "guest/runtime/statistics.hpp"
#include "guest_api.hpp"

namespace gpupool::guest {
namespace {

// Tables are told apart in log lines and template arguments by the first four bytes of their id.
constexpr u32 kRuntime = 0x6bd5'fb6c;
constexpr u32 kCurrentContext = 0x42d8'5a81;
constexpr u32 kBuffers = 0xa094'798c;
constexpr u32 kRuntimeHooks = 0x263e'8860;
constexpr u32 kHandshake = 0xd408'2055;
constexpr u32 kBlas = 0x2131'8c60;
constexpr u32 kFft = 0x6e16'3fbe;
constexpr u32 kBlasHeuristics = 0x1734'dc26;
constexpr u32 kContextBypass = 0x0ca5'0b8c;

// A slot whose meaning is not known. Called with any arguments: the System V ABI lets a function ignore them.
template <u32 Table, size_t Slot>
CUresult unknown_slot() {
  static const bool logged = [] {
    log_line("slot %zu of export table %08x is not forwarded; the program was told NOT_SUPPORTED", Slot,
             Table);
    return true;
  }();
  static_cast<void>(logged);
  return CUDA_ERROR_NOT_SUPPORTED;
}

// A table of `Bytes` bytes, its size in entry 0, every other slot a stub until replaced.
template <u32 Id, size_t Bytes>
struct SizedTable {
  static constexpr size_t kSlots = Bytes / sizeof(void*);
  std::array<const void*, kSlots> slots = stubs(std::make_index_sequence<kSlots>{});

  SizedTable& set(size_t slot, const void* function) {
    slots[slot] = function;
    return *this;
  }

 private:
  template <size_t... Slot>
  static std::array<const void*, kSlots> stubs(std::index_sequence<Slot...>) {
    std::array<const void*, kSlots> all = {reinterpret_cast<const void*>(&unknown_slot<Id, Slot>)...};
    all[0] = reinterpret_cast<const void*>(Bytes);
    return all;
  }
};

template <typename Function>
const void* slot(Function* function) {
  return reinterpret_cast<const void*>(function);
}

CUresult handshake(u32 version, u64 unix_seconds, u64* out);

// Sizes as driver 580 has them. Slot 11 and others of these tables are never called by the libraries
// measured.
struct Tables {
  SizedTable<kRuntime, 104> runtime;
  SizedTable<kCurrentContext, 24> current_context;
  SizedTable<kBuffers, 56> buffers;
  std::array<const void*, 3> storage{};
  SizedTable<kRuntimeHooks, 120> hooks;
  SizedTable<kHandshake, 24> handshake_slots;
  SizedTable<kBlas, 744> blas;
  SizedTable<kFft, 792> fft;
  SizedTable<kBlasHeuristics, 136> blas_heuristics;
  SizedTable<kContextBypass, 16> bypass;

  Tables() {
    runtime.set(1, slot(&export_slots::load_fatbin))
        .set(2, slot(&export_slots::primary_context))
        .set(6, slot(&export_slots::load_fatbin_extended))
        .set(7, slot(&export_slots::ignore_size))
        .set(8, slot(&export_slots::load_fatbin_from))
        .set(12, slot(&export_slots::load_compilers));
    current_context.set(2, slot(&export_slots::current_context));
    buffers.set(2, slot(&export_slots::large_buffer)).set(6, slot(&export_slots::small_buffer));
    storage = {slot(&export_slots::storage_put), slot(&export_slots::storage_delete),
               slot(&export_slots::storage_get)};
    hooks.set(2, slot(&export_slots::query_hook)).set(3, slot(&export_slots::succeed));
    handshake_slots.set(1, slot(&handshake));
    blas.set(4, slot(&export_slots::blas_query))
        .set(39, slot(&export_slots::blas_stream_id))
        .set(51, slot(&export_slots::blas_stream));
    // cuBLASLt's bf16 heuristics use this table without looking whether they got it (driver 580, cuBLASLt 13:
    // a null table ends the program), and carry on without it when its calls fail.
    blas_heuristics.set(4, slot(&export_slots::refuse)).set(13, slot(&export_slots::refuse));
    fft.set(7, slot(&export_slots::fft_enumerate));
    bypass.set(1, slot(&export_slots::create_context));
  }
};

const Tables& tables() {
  static const auto& all = *new Tables();
  return all;
}

CUresult handshake(u32 version, u64 unix_seconds, u64* out) {
  if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
  int driver_version = 0;
  api::cuDriverGetVersion(&driver_version);
  const HandshakeQuestion question{
      .driver_version = static_cast<u32>(driver_version),
      .version = version,
      .process = static_cast<u32>(getpid()),
      .thread = static_cast<u32>(pthread_self()),
      .runtime_table = reinterpret_cast<u64>(runtime_table()),
      .handshake_table = reinterpret_cast<u64>(handshake_table()),
      .function = reinterpret_cast<u64>(handshake_table()[1]),
      .unix_seconds = unix_seconds,
  };
  std::vector<HandshakeDevice> devices(device_count());
  for (size_t i = 0; i < devices.size(); ++i) {
    const wire::DeviceInfo& info = *device_info(static_cast<CUdevice>(i));
    std::copy(std::begin(info.uuid), std::end(info.uuid), devices[i].uuid.begin());
    devices[i].pci_domain = info.attributes[CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID];
    devices[i].pci_bus = info.attributes[CU_DEVICE_ATTRIBUTE_PCI_BUS_ID];
    devices[i].pci_device = info.attributes[CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID];
  }
  const std::array<u64, 2> answer = answer_handshake(question, devices);
  std::copy(answer.begin(), answer.end(), out);
  return CUDA_SUCCESS;
}

struct NamedTable {
  TableId id;
  const void* const* entries;  // null: known, and libraries do without it (measured)
};

const std::vector<NamedTable>& named_tables() {
  const Tables& all = tables();
  static const auto& list = *new std::vector<NamedTable>{
      {{0x6b, 0xd5, 0xfb, 0x6c, 0x5b, 0xf4, 0xe7, 0x4a, 0x89, 0x87, 0xd9, 0x39, 0x12, 0xfd, 0x9d, 0xf9},
       all.runtime.slots.data()},
      {{0x42, 0xd8, 0x5a, 0x81, 0x23, 0xf6, 0xcb, 0x47, 0x82, 0x98, 0xf6, 0xe7, 0x8a, 0x3a, 0xec, 0xdc},
       all.current_context.slots.data()},
      {{0xa0, 0x94, 0x79, 0x8c, 0x2e, 0x74, 0x2e, 0x74, 0x93, 0xf2, 0x08, 0x00, 0x20, 0x0c, 0x0a, 0x66},
       all.buffers.slots.data()},
      {{0xc6, 0x93, 0x33, 0x6e, 0x11, 0x21, 0xdf, 0x11, 0xa8, 0xc3, 0x68, 0xf3, 0x55, 0xd8, 0x95, 0x93},
       all.storage.data()},
      {{0x26, 0x3e, 0x88, 0x60, 0x7c, 0xd2, 0x61, 0x43, 0x92, 0xf6, 0xbb, 0xd5, 0x00, 0x6d, 0xfa, 0x7e},
       all.hooks.slots.data()},
      {{0xd4, 0x08, 0x20, 0x55, 0xbd, 0xe6, 0x70, 0x4b, 0x8d, 0x34, 0xba, 0x12, 0x3c, 0x66, 0xe1, 0xf2},
       all.handshake_slots.slots.data()},
      {{0x21, 0x31, 0x8c, 0x60, 0x97, 0x14, 0x32, 0x48, 0x8c, 0xa6, 0x41, 0xff, 0x73, 0x24, 0xc8, 0xf2},
       all.blas.slots.data()},
      {{0x6e, 0x16, 0x3f, 0xbe, 0xb9, 0x58, 0x44, 0x4d, 0x83, 0x5c, 0xe1, 0x82, 0xaf, 0xf1, 0x99, 0x1e},
       all.fft.slots.data()},
      {{0x0c, 0xa5, 0x0b, 0x8c, 0x10, 0x04, 0x92, 0x9a, 0x89, 0xa7, 0xd0, 0xdf, 0x10, 0xe7, 0x72, 0x86},
       all.bypass.slots.data()},
      {{0x17, 0x34, 0xdc, 0x26, 0x80, 0x0d, 0x47, 0x45, 0x87, 0x26, 0xc0, 0xf1, 0xe7, 0xdd, 0x8b, 0xca},
       all.blas_heuristics.slots.data()},
      // Ours, not NVIDIA's: a random id.
      {{0x2a, 0x3b, 0xeb, 0x86, 0xf5, 0xef, 0x72, 0xe4, 0x9f, 0xba, 0x5e, 0x86, 0x82, 0x43, 0x07, 0xdf},
       statistics_table()},
      // cudart 13, the PTX compile path, at load: each library carries on without.
      {{0x69, 0xa2, 0x8e, 0x9f, 0x24, 0x49, 0x8b, 0x47, 0xb0, 0x30, 0xc5, 0xda, 0x33, 0x0e, 0xa4, 0xe9},
       nullptr},
      {{0xda, 0x91, 0x51, 0xd3, 0x3a, 0xe6, 0xcc, 0x41, 0xa5, 0xc0, 0x4f, 0x26, 0xd5, 0x33, 0xe3, 0x28},
       nullptr},
      {{0xf8, 0xcf, 0xf9, 0x51, 0x21, 0x46, 0x8b, 0x4e, 0xb9, 0xe2, 0xfb, 0x46, 0x9e, 0x7c, 0x0d, 0xd9},
       nullptr},
  };
  return list;
}

std::string hexadecimal(const TableId& id) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text;
  for (const u8 byte : id) {
    text += kDigits[byte >> 4];
    text += kDigits[byte & 15];
  }
  return text;
}

void log_unknown_table(const TableId& id) {
  static std::mutex mutex;
  static auto& seen = *new std::set<TableId>();
  const std::lock_guard lock(mutex);
  if (seen.insert(id).second)
    log_line("export table %s is not known; the program was told NOT_FOUND", hexadecimal(id).c_str());
}

}  // namespace

const void* const* runtime_table() {
  return tables().runtime.slots.data();
}

const void* const* handshake_table() {
  return tables().handshake_slots.slots.data();
}

const void* const* find_export_table(const TableId& id) {
  for (const NamedTable& table : named_tables()) {
    if (table.id != id) continue;
    if (table.entries == nullptr) log_debug("export table %s is not served", hexadecimal(id).c_str());
    return table.entries;
  }
  log_unknown_table(id);
  return nullptr;
}

namespace api {

// Works before cuInit, as in the driver (measured).
CUresult cuGetExportTable(const void** table, const CUuuid* id) {
  if (table == nullptr || id == nullptr) return CUDA_ERROR_INVALID_VALUE;
  TableId wanted;
  std::memcpy(wanted.data(), id->bytes, wanted.size());
  const void* const* entries = find_export_table(wanted);
  if (entries == nullptr) return CUDA_ERROR_NOT_FOUND;
  *table = entries;
  return CUDA_SUCCESS;
}

}  // namespace api
}  // namespace gpupool::guest
