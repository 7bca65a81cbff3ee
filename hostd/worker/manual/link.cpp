// Linker states. Their option buffers live here, since the driver writes to them until the state is
// destroyed.
#include <cstring>
#include <utility>

#include "hostd/worker/manual/module_image.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

struct LinkEntry {
  explicit LinkEntry(Worker& w, Request& request) : worker(w), options(request) {}
  ~LinkEntry() {
    if (state != nullptr) worker.driver.cuLinkDestroy(state);
  }
  LinkEntry(const LinkEntry&) = delete;
  LinkEntry& operator=(const LinkEntry&) = delete;

  Worker& worker;
  JitArguments options;
  CUlinkState state = nullptr;
  const void* cubin = nullptr;  // belongs to the state
  size_t cubin_bytes = 0;
  u64 input_bytes = 0;
};

namespace {

constexpr u64 kMaxLinkNameBytes = 256;
constexpr u64 kMaxLinkStates = 256;

// An answer begins with the driver's result and what the options hold by now.
CUresult answer(Request& request, const LinkEntry& entry, CUresult result) {
  request.out->put(static_cast<i32>(result));
  entry.options.answer(entry.worker, request);
  return CUDA_SUCCESS;
}

std::shared_ptr<LinkEntry> find_entry(Worker& worker, Request& request) {
  const std::shared_ptr<LinkEntry>* entry = worker.link_states.find(request.in.get<wire::Handle>());
  return entry == nullptr ? nullptr : *entry;
}

// What the input claims to be must hold, or the driver would read past its end.
CUresult check_input(u32 type, const std::vector<u8>& data, u64 bytes) {
  if (type != CU_JIT_INPUT_CUBIN && type != CU_JIT_INPUT_FATBINARY) return CUDA_SUCCESS;
  const wire::ImageExtent extent = wire::measure_image(data.data(), bytes);
  return extent.kind == wire::ImageKind::cubin || extent.kind == wire::ImageKind::fatbin
             ? CUDA_SUCCESS
             : CUDA_ERROR_INVALID_IMAGE;
}

}  // namespace

// wire::Handle state, options -> i32 result, option results.
CUresult handle_cuLinkCreate_v2(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  auto entry = std::make_shared<LinkEntry>(worker, request);
  request.in.finish();
  u64 alive = 0;
  worker.link_states.each([&alive](wire::Handle, const std::shared_ptr<LinkEntry>&) { ++alive; });
  CUresult result = CUDA_ERROR_OUT_OF_MEMORY;
  if (alive < kMaxLinkStates)
    result = worker.driver.cuLinkCreate_v2(entry->options.count(), entry->options.options(),
                                           entry->options.values(), &entry->state);
  answer(request, *entry, result);
  if (result == CUDA_SUCCESS) worker.link_states.put(handle, std::move(entry));
  return CUDA_SUCCESS;
}

// wire::Handle state, u32 type, name, options; the data in bulk -> i32 result, option results of the state.
CUresult handle_cuLinkAddData_v2(Worker& worker, Request& request) {
  const std::shared_ptr<LinkEntry> entry = find_entry(worker, request);
  const auto type = request.in.get_enum<u32>(CU_JIT_NUM_INPUT_TYPES - 1);
  const std::string name = request.in.get_string(kMaxLinkNameBytes);
  JitArguments own(request);
  request.in.finish();
  if ((request.flags & wire::kBulkIn) == 0 || request.bulk_size == 0 ||
      request.bulk_size > wire::kMaxImageBytes)
    throw wire::ProtocolError("linker input without data");
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (entry->input_bytes + request.bulk_size > wire::kMaxImageBytes)
    return answer(request, *entry, CUDA_ERROR_OUT_OF_MEMORY);
  entry->input_bytes += request.bulk_size;
  std::vector<u8> data(request.bulk_size + 4096);  // zeroes after it end a text and pad what is read ahead
  std::memcpy(data.data(), worker.at(request.bulk_offset), request.bulk_size);
  CUresult result = check_input(type, data, request.bulk_size);
  // Text may be given without its NUL; the driver is told of ours.
  const bool ends = data[request.bulk_size - 1] == 0;
  const u64 bytes = request.bulk_size + (type == CU_JIT_INPUT_PTX && !ends ? 1 : 0);
  if (result == CUDA_SUCCESS)
    result = worker.driver.cuLinkAddData_v2(entry->state, static_cast<CUjitInputType>(type), data.data(),
                                            bytes, name.c_str(), own.count(), own.options(), own.values());
  return answer(request, *entry, result);
}

// wire::Handle state, u32 fetch. Without fetch: i32 result, option results, u64 cubin bytes. With it: the
// cubin.
CUresult handle_cuLinkComplete(Worker& worker, Request& request) {
  const std::shared_ptr<LinkEntry> entry = find_entry(worker, request);
  const auto fetch = request.in.get_enum<u32>(1);
  request.in.finish();
  if (entry == nullptr) return CUDA_ERROR_INVALID_HANDLE;
  if (fetch == 1) {
    if (entry->cubin == nullptr) return CUDA_ERROR_INVALID_VALUE;
    request.out->put_array(static_cast<const u8*>(entry->cubin), entry->cubin_bytes);
    return CUDA_SUCCESS;
  }
  void* cubin = nullptr;
  const CUresult result = worker.driver.cuLinkComplete(entry->state, &cubin, &entry->cubin_bytes);
  entry->cubin = result == CUDA_SUCCESS ? cubin : nullptr;
  answer(request, *entry, result);
  request.out->put<u64>(entry->cubin == nullptr ? 0 : entry->cubin_bytes);
  return CUDA_SUCCESS;
}

// wire::Handle state.
CUresult handle_cuLinkDestroy(Worker& worker, Request& request) {
  const auto handle = request.in.get<wire::Handle>();
  request.in.finish();
  const std::optional<std::shared_ptr<LinkEntry>> entry = worker.link_states.take(handle);
  if (!entry) return CUDA_ERROR_INVALID_HANDLE;
  const CUlinkState state = std::exchange((*entry)->state, nullptr);
  return worker.driver.cuLinkDestroy(state);
}

}  // namespace gpupool::worker
