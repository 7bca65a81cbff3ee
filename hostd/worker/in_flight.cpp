#include "hostd/worker/in_flight.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "hostd/worker/launch_crew.hpp"
#include "hostd/worker/manual/context.hpp"
#include "hostd/worker/manual/memory.hpp"

namespace gpupool::worker {
namespace {

constexpr u64 kBatchNs = 500'000;
constexpr u64 kMostNs = 1'000'000;  // in flight, if two batches are not more
constexpr size_t kMostBatches = 4;
constexpr u32 kMostSubmissions = 256;
constexpr u32 kMostStreams = 64;  // of a batch
constexpr u32 kWords = 512;       // one page; more than all batches use, unless the lane is stuck (gate.hpp)
constexpr u64 kPageBytes = kWords * sizeof(u64);
static_assert(kWords > (kMostBatches + 1) * kMostStreams);

struct HostMark {
  std::atomic<u64>* word;
  u64 value;
};

void CUDA_CB write_word(void* argument) {
  const std::unique_ptr<HostMark> mark(static_cast<HostMark*>(argument));
  mark->word->store(mark->value, std::memory_order_release);
}

}  // namespace

void InFlight::add(wire::Handle stream, u64 now_ns) {
  if (open_.submissions == 0) open_.first_ns = now_ns;
  ++open_.submissions;
  ++submissions_;
  last_ns_ = now_ns;
  if (!stream || (!open_.streams.empty() && open_.streams.back() == stream)) return;
  if (std::ranges::find(open_.streams, stream) == open_.streams.end()) open_.streams.push_back(stream);
}

bool InFlight::wants_mark(u64 now_ns) const {
  return open_.submissions != 0 && (open_.submissions >= most_ || now_ns - open_.first_ns >= kBatchNs ||
                                    open_.streams.size() >= kMostStreams);
}

bool InFlight::is_full() const {
  return batches_.size() >= kMostBatches || (batches_.size() >= 2 && submissions_ * cost_ns_ >= kMostNs) ||
         (batches_.size() >= 2 && cost_ns_ == 0);
}

bool InFlight::prepare_words() {
  if (words_ != nullptr) return true;
  void* page = mmap(nullptr, kPageBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return false;
  words_ = static_cast<std::atomic<u64>*>(page);
  newest_.resize(kWords);
  gpu_writes_ = worker_.stream_memory_operations && registration_context() != nullptr &&
                worker_.register_host(page, kPageBytes) == CUDA_SUCCESS;
  return true;
}

// A word that no mark is still to be written to: a late one would undo a newer one's. If there is none, the
// next one, as when what is in flight has been standing still for hundreds of marks.
u32 InFlight::next_word() {
  for (u32 i = 1; i <= kWords; ++i) {
    const u32 word = (next_word_ + i) % kWords;
    if (words_[word].load(std::memory_order_acquire) < newest_[word]) continue;
    next_word_ = word;
    return word;
  }
  return next_word_ = (next_word_ + 1) % kWords;
}

// Nothing of ours may become part of the client's graph. The legacy stream may not be used while a stream
// that waits for it is captured; the client cannot use it then either.
bool InFlight::may_mark(const StreamEntry& entry) const {
  if (entry.capturing) return false;
  if (entry.stream != nullptr && entry.stream != CU_STREAM_LEGACY) return true;
  bool may = true;
  worker_.streams.each([&](wire::Handle, const StreamEntry& other) {
    if (!may || !other.capturing) return;
    unsigned int flags = 0;
    may = worker_.driver.cuStreamGetFlags(other.stream, &flags) == CUDA_SUCCESS &&
          (flags & CU_STREAM_NON_BLOCKING) != 0;
  });
  return may;
}

bool InFlight::mark(wire::Handle stream, Batch& batch) {
  const StreamEntry* entry = worker_.streams.find(stream);
  if (entry == nullptr || !make_current_(entry->context)) return true;  // it is gone with its context
  if (!may_mark(*entry)) {
    batch.unmarked.push_back(stream);
    return true;
  }
  const u32 place = next_word();
  std::atomic<u64>& word = words_[place];
  const u64 value = ++value_;
  CUresult result = CUDA_SUCCESS;
  if (gpu_writes_) {
    result =
        worker_.driver.cuStreamWriteValue64_v2(entry->stream, reinterpret_cast<CUdeviceptr>(&word), value, 0);
  } else {
    auto host_mark = std::make_unique<HostMark>(HostMark{&word, value});
    result = worker_.driver.cuLaunchHostFunc(entry->stream, &write_word, host_mark.get());
    if (result == CUDA_SUCCESS) static_cast<void>(host_mark.release());  // write_word owns it now
  }
  if (result != CUDA_SUCCESS) return false;
  newest_[place] = value;
  batch.marks.push_back(Mark{place, value, entry->context});
  return true;
}

void InFlight::close() {
  if (open_.submissions == 0) return;
  if (worker_.crew != nullptr && worker_.crew->active()) worker_.crew->settle_all();
  Batch batch = std::move(open_);
  open_ = Batch{};
  if (batch.drawn && worker_.drawing != nullptr) batch.fence = worker_.drawing->fence();
  // A session of OpenGL alone has no context of CUDA's, with which words are registered.
  bool works = batch.streams.empty() || prepare_words();
  for (const wire::Handle stream : batch.streams) works = works && mark(stream, batch);
  if (!works) return forget();
  batches_.push_back(std::move(batch));
}

bool InFlight::mark_late(Batch& batch) {
  bool works = true;
  for (const wire::Handle stream : std::exchange(batch.unmarked, {})) works = works && mark(stream, batch);
  return works;
}

bool InFlight::is_done(const Batch& batch) const {
  if (batch.fence != 0 && !worker_.drawing->passed(batch.fence)) return false;
  return batch.unmarked.empty() && std::ranges::all_of(batch.marks, [&](const Mark& mark) {
           if (words_[mark.word].load(std::memory_order_acquire) >= mark.value) return true;
           // With its context the stream's work is gone, and the word is never written.
           return worker_.contexts.find(wire::Handle::make(wire::HandleKind::context, 0, mark.context)) ==
                  nullptr;
         });
}

void InFlight::look(u64 now_ns) {
  if (!batches_.empty() && !batches_.front().unmarked.empty() && !mark_late(batches_.front()))
    return forget();
  while (!batches_.empty() && is_done(batches_.front())) {
    const Batch& batch = batches_.front();
    // It began when the one before was done, or later. Seen late, it looks longer than it was: we then stop
    // too early once, and not too late.
    const u64 took_ns = now_ns - std::min(now_ns, std::max(batch.first_ns, last_done_ns_));
    const u64 cost_ns = std::max<u64>(took_ns / batch.submissions, 1);
    cost_ns_ = cost_ns_ == 0 || cost_ns > 2 * cost_ns_ ? cost_ns : (3 * cost_ns_ + cost_ns) / 4;
    most_ = static_cast<u32>(std::clamp<u64>(kBatchNs / cost_ns_, 1, kMostSubmissions));
    last_done_ns_ = now_ns;
    submissions_ -= batch.submissions;
    batches_.pop_front();
  }
}

void InFlight::forget() {
  batches_.clear();
  open_ = Batch{};
  submissions_ = 0;
}

}  // namespace gpupool::worker
