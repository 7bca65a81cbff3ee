#include "hostd/worker/manual/module_image.hpp"

#include <sys/mman.h>

#include <cstring>

#include "hostd/worker/image_store.hpp"
#include "worker_manual.hpp"

namespace gpupool::worker {

namespace {

constexpr u64 kPartAlignment = 64;    // guest/runtime/manual/image.cpp lays the parts out the same way
constexpr u64 kPadding = 4096;        // zeroes after each image, for drivers that look a little ahead
constexpr u64 kInlineResults = 2048;  // of compiler results; a reply has about 4000 bytes
constexpr u64 kMaxWaitingResults = 64;

constexpr u64 aligned(u64 bytes) {
  return (bytes + kPartAlignment - 1) / kPartAlignment * kPartAlignment;
}

// Of what is loaded. Of a module the driver has a copy of its own, which counts as much.
u64 held_bytes(Worker& worker) {
  u64 total = 0;
  worker.modules.each([&total](wire::Handle, const ModuleEntry& entry) { total += entry.image_bytes; });
  worker.libraries.each(
      [&total](wire::Handle, const LibraryEntry& entry) { total += entry.image ? entry.image->bytes() : 0; });
  return total;
}

}  // namespace

std::shared_ptr<ImageCopy> ImageCopy::take(Worker& worker, Request& request, CUresult& error, u32& asked) {
  const u32 word = request.in.get<u32>();
  asked = word & (wire::kKeepImage | wire::kImageByName);
  const u32 parts = word & ~asked;
  if ((asked & wire::kImageByName) == 0) {
    if ((request.flags & wire::kBulkIn) == 0) throw wire::ProtocolError("a load without an image");
    return unpack(worker, worker.at(request.bulk_offset), request.bulk_size, parts, error);
  }
  const auto name = request.in.get<wire::Digest>();
  const auto bytes = request.in.get<u64>();
  if (bytes > wire::kMaxImageBytes) throw wire::ProtocolError("image too large");
  const std::unique_ptr<u8[]> kept = image_store().load(name, bytes);
  error = CUDA_ERROR_NOT_READY;
  return kept == nullptr ? nullptr : unpack(worker, kept.get(), bytes, parts, error);
}

std::shared_ptr<ImageCopy> ImageCopy::unpack(Worker& worker, const u8* source, u64 bytes, u32 parts,
                                             CUresult& error) {
  u64 sent = aligned(parts * sizeof(u64));
  if (parts == 0 || parts > wire::kMaxImageParts || sent > bytes)
    throw wire::ProtocolError("image does not fit its bulk piece");
  std::vector<u64> sizes(parts);
  std::memcpy(sizes.data(), source, parts * sizeof(u64));
  source += sent;
  u64 needed = 0;
  std::vector<u64> places;
  for (const u64 size : sizes) {
    if (size == 0 || size > wire::kMaxImageBytes) throw wire::ProtocolError("image part of a wrong size");
    places.push_back(needed);
    sent += aligned(size);
    needed += aligned(size) + kPadding;
    if (sent > wire::kMaxImageBytes) throw wire::ProtocolError("image too large");
  }
  if (sent != bytes) throw wire::ProtocolError("image does not fit its bulk piece");
  error = CUDA_ERROR_OUT_OF_MEMORY;
  if (held_bytes(worker) + needed > worker.caps.image_bytes) {
    note_cap("limits.image_mib");
    return nullptr;
  }
  void* memory = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  std::shared_ptr<ImageCopy> copy(new ImageCopy());
  copy->memory_ = static_cast<u8*>(memory);
  copy->bytes_ = needed;
  copy->sizes_ = sizes;
  for (u64 i = 0; i < sizes.size(); ++i) {
    std::memcpy(copy->memory_ + places[i], source, sizes[i]);
    source += aligned(sizes[i]);
  }
  error = copy->check(sizes, places);
  return error == CUDA_SUCCESS ? copy : nullptr;
}

ImageCopy::~ImageCopy() {
  if (memory_ != nullptr) munmap(memory_, bytes_);
}

CUresult ImageCopy::check(const std::vector<u64>& sizes, const std::vector<u64>& places) {
  for (u64 i = 0; i < sizes.size(); ++i) {
    const wire::ImageExtent extent = wire::measure_image(memory_ + places[i], sizes[i]);
    if (extent.kind == wire::ImageKind::invalid) return CUDA_ERROR_INVALID_IMAGE;
    // Only fatbins are linked from others.
    if (sizes.size() > 1 && extent.kind != wire::ImageKind::fatbin) return CUDA_ERROR_INVALID_IMAGE;
    parts_.emplace_back(memory_ + places[i], extent.bytes);
    if (i > 0) prelinked_.push_back(memory_ + places[i]);
  }
  if (sizes.size() > 1) {
    prelinked_.push_back(nullptr);
    wrapper_ = {wire::kFatbinWrapperMagic, 2, memory_, prelinked_.data()};
  }
  return CUDA_SUCCESS;
}

std::vector<u8> ImageCopy::packed() const {
  std::vector<u8> bytes(aligned(sizes_.size() * sizeof(u64)));
  std::memcpy(bytes.data(), sizes_.data(), sizes_.size() * sizeof(u64));
  u64 place = 0;
  for (const u64 size : sizes_) {
    bytes.insert(bytes.end(), memory_ + place, memory_ + place + aligned(size));
    place += aligned(size) + kPadding;
  }
  return bytes;
}

void answer_kept(const std::shared_ptr<ImageCopy>& image, u32 asked, Request& request) {
  static bool told = false;  // one worker process serves one client
  if (asked == 0) return;
  if (image != nullptr && (asked & wire::kKeepImage) != 0) keep_image(image);
  const std::vector<u64> sizes = told ? std::vector<u64>() : image_store().sizes();
  told = true;
  request.out->put_array(sizes.data(), sizes.size());
}

JitArguments::JitArguments(Request& request) {
  const std::vector<u16> options = request.in.get_array<u16>(wire::kMaxJitOptions);
  const std::vector<u32> values = request.in.get_array<u32>(wire::kMaxJitOptions);
  if (options.size() != values.size()) throw wire::ProtocolError("compiler options without values");
  for (u64 i = 0; i < options.size(); ++i) {
    if (wire::jit_option_kind(options[i]) != wire::JitOptionKind::number)
      throw wire::ProtocolError("compiler option that does not travel as a number");
    options_.push_back(static_cast<CUjit_option>(options[i]));
    values_.push_back(reinterpret_cast<void*>(u64{values[i]}));
  }
  numbers_ = options_.size();
  const u32 info = request.in.get<u32>();
  const u32 error = request.in.get<u32>();
  if (info > wire::kMaxJitLogBytes || error > wire::kMaxJitLogBytes)
    throw wire::ProtocolError("compiler log too large");
  add_log(info_, info, CU_JIT_INFO_LOG_BUFFER, CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES);
  add_log(error_, error, CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
}

void JitArguments::add_log(std::vector<char>& log, u32 capacity, CUjit_option buffer, CUjit_option size) {
  if (capacity == 0) return;
  log.resize(capacity);
  options_.push_back(buffer);
  values_.push_back(log.data());
  options_.push_back(size);
  values_.push_back(reinterpret_cast<void*>(u64{capacity}));
}

void JitArguments::answer(Worker& worker, Request& request) const {
  std::vector<u32> numbers(numbers_);
  for (u64 i = 0; i < numbers_; ++i) std::memcpy(&numbers[i], &values_[i], sizeof(u32));
  wire::Writer results;
  results.put_array(numbers.data(), numbers.size());
  for (const std::vector<char>* log : {&info_, &error_})
    results.put_array(log->data(), log->empty() ? 0 : strnlen(log->data(), log->size()));
  // The call's own bulk piece carries an image, so the answer has only the reply box.
  const std::span<const u8> bytes = results.bytes();
  const bool fits = bytes.size() <= kInlineResults;
  request.out->put<u64>(bytes.size());
  request.out->put_array(bytes.data(), fits ? bytes.size() : 0);
  if (fits) return;
  // A client fetches them at once: many that wait are an attempt to fill our memory.
  if (worker.jit_results.size() == kMaxWaitingResults)
    throw wire::ProtocolError("too many compiler results wait");
  worker.jit_results[request.thread].assign(bytes.begin(), bytes.end());
}

// No arguments -> what answer() could not send to this thread.
CUresult handle_jit_results(Worker& worker, Request& request) {
  request.in.finish();
  const auto results = worker.jit_results.find(request.thread);
  if (results == worker.jit_results.end()) throw wire::ProtocolError("no compiler results are waiting");
  request.out->put_array(results->second.data(), results->second.size());
  worker.jit_results.erase(results);
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
