// cuGetProcAddress: names, versions and default-stream flavours to entry points. How driver 580 answers each
// of them was measured; tests/guest/test_proc_address.py holds us to that table.
#include "guest/runtime/manual/proc_address.hpp"

#include <algorithm>
#include <cstring>

#include "guest_api.hpp"
#include "wire/cpp/version.hpp"

namespace gpupool::guest {
namespace {

struct NameOrder {
  bool operator()(const ProcEntry& entry, const char* name) const {
    return std::strcmp(entry.name, name) < 0;
  }
  bool operator()(const char* name, const ProcEntry& entry) const {
    return std::strcmp(name, entry.name) < 0;
  }
};

}  // namespace

void* find_entry(std::span<const ProcEntry> table, const char* name, int version, u64 flags,
                 CUdriverProcAddressQueryResult& status) {
  const auto [first, last] = std::equal_range(table.begin(), table.end(), name, NameOrder{});
  if (first == last) {
    status = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return nullptr;
  }
  const bool per_thread = (flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM) != 0;
  // A function with a per-thread flavour is looked for in that flavour only, even where the version is too
  // old for it; one without is the same for both.
  const bool has_flavour = per_thread && std::any_of(first, last, [](const ProcEntry& entry) {
                             return entry.per_thread != nullptr;
                           });
  void* found = nullptr;
  for (auto entry = first; entry != last; ++entry) {
    if (!has_flavour && entry->since <= version) found = entry->entry;
    if (has_flavour && entry->per_thread != nullptr && entry->per_thread_since <= version)
      found = entry->per_thread;
  }
  status = found == nullptr ? CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT : CU_GET_PROC_ADDRESS_SUCCESS;
  return found;
}

namespace {

constexpr u64 kKnownFlags = CU_GET_PROC_ADDRESS_LEGACY_STREAM | CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;

CUresult look_up(const char* symbol, void** entry, int version, u64 flags,
                 CUdriverProcAddressQueryResult& status) {
  int newest = 0;
  api::cuDriverGetVersion(&newest);
  if (symbol == nullptr || entry == nullptr || (flags & ~kKnownFlags) != 0 || version > newest)
    return CUDA_ERROR_INVALID_VALUE;
  // A negative version is a large one to the driver: it reads it unsigned after that check (measured).
  *entry = find_entry({kProcTable, kProcTableSize}, symbol, version < 0 ? newest : version, flags, status);
  return CUDA_SUCCESS;
}

}  // namespace

namespace api {

// The older form has no other way than its result to say that nothing was found.
CUresult cuGetProcAddress(const char* symbol, void** pfn, int version, cuuint64_t flags) {
  CUdriverProcAddressQueryResult status{};
  const CUresult result = look_up(symbol, pfn, version, flags, status);
  if (result != CUDA_SUCCESS) return result;
  return *pfn == nullptr ? CUDA_ERROR_NOT_FOUND : CUDA_SUCCESS;
}

CUresult cuGetProcAddress_v2(const char* symbol, void** pfn, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult* status) {
  CUdriverProcAddressQueryResult ignored{};
  return look_up(symbol, pfn, version, flags, status == nullptr ? ignored : *status);
}

}  // namespace api
}  // namespace gpupool::guest
