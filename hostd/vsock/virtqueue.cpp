#include "hostd/vsock/virtqueue.hpp"

#include <atomic>
#include <cstring>

namespace gpupool::vsock {
namespace {

// 2.7.5, 2.7.6, 2.7.8
constexpr u16 kNext = 1, kWrite = 2, kIndirect = 4;
constexpr u16 kNoInterrupt = 1;
constexpr u32 kEntryBytes = 16, kUsedElementBytes = 8;

template <typename T>
T load(const void* at, std::memory_order order = std::memory_order_relaxed) {
  return std::atomic_ref<T>(*static_cast<T*>(const_cast<void*>(at))).load(order);
}

template <typename T>
void store(void* at, T value, std::memory_order order = std::memory_order_relaxed) {
  std::atomic_ref<T>(*static_cast<T*>(at)).store(value, order);
}

bool aligned(const void* at, u64 bytes) {
  return (reinterpret_cast<u64>(at) & (bytes - 1)) == 0;
}

}  // namespace

bool Virtqueue::start(const GuestMemory& memory, const RingPlace& place, u16 next, bool event_index,
                      std::string& error) {
  stop();
  if (place.size == 0 || place.size > kMostEntries || (place.size & (place.size - 1)) != 0) {
    error = "a queue of " + std::to_string(place.size) + " entries";
    return false;
  }
  place_ = place;
  if (!move(memory, error)) return false;
  reason_.clear();
  event_index_ = event_index;
  called_ = false;
  next_ = next;
  // Ours to write, but a device that takes over (after a restart) finds only here how far it had come.
  used_ = shown_ = load<u16>(used_ring_ + 2);
  if (event_index_) arm();
  return true;
}

bool Virtqueue::move(const GuestMemory& memory, std::string& error) {
  memory_ = nullptr;
  descriptors_ = memory.at_user(place_.descriptors, u64{place_.size} * kEntryBytes);
  std::byte* available = memory.at_user(place_.available, 6 + u64{place_.size} * 2);
  used_ring_ = memory.at_user(place_.used, 6 + u64{place_.size} * kUsedElementBytes);
  if (descriptors_ == nullptr || available == nullptr || used_ring_ == nullptr) {
    error = "a ring outside the guest's memory";
    return false;
  }
  if (!aligned(descriptors_, 16) || !aligned(available, 2) || !aligned(used_ring_, 4)) {
    error = "a ring that is not aligned";
    return false;
  }
  available_ = reinterpret_cast<u16*>(available);
  memory_ = &memory;
  return true;
}

u16 Virtqueue::stop() {
  memory_ = nullptr;
  return next_;
}

void Virtqueue::break_with(std::string reason) {
  if (reason_.empty()) reason_ = std::move(reason);
}

u16 Virtqueue::offered() const {
  return static_cast<u16>(load<u16>(available(1), std::memory_order_acquire) - next_);
}

bool Virtqueue::pop(Chain& chain) {
  if (!running()) return false;
  const u16 count = offered();
  if (count == 0) return false;
  if (count > place_.size) {
    break_with("the available index is ahead of the queue");
    return false;
  }
  chain.head = load<u16>(available(2 + (next_ & (place_.size - 1))));
  if (!walk(chain)) return false;
  ++next_;
  return true;
}

bool Virtqueue::walk(Chain& chain) {
  chain.readable.clear();
  chain.writable.clear();
  chain.readable_bytes = chain.writable_bytes = 0;
  const std::byte* table = descriptors_;
  u32 size = place_.size;
  bool indirect = false;
  u16 index = chain.head;
  for (size_t steps = 0; steps < kMostParts; ++steps) {
    if (index >= size) {
      break_with("a descriptor beyond its table");
      return false;
    }
    // Two loads of eight bytes: what is checked is what is used.
    const u64 words[2] = {load<u64>(table + u64{index} * kEntryBytes),
                          load<u64>(table + u64{index} * kEntryBytes + 8)};
    Entry entry;
    std::memcpy(&entry, words, sizeof entry);
    if ((entry.flags & kIndirect) != 0) {
      if (indirect || (entry.flags & kNext) != 0 || entry.bytes == 0 || entry.bytes % kEntryBytes != 0) {
        break_with("an indirect descriptor that must not be");
        return false;
      }
      table = memory_->at_guest(entry.address, entry.bytes);
      if (table == nullptr || !aligned(table, 8)) {
        break_with("an indirect table outside the guest's memory");
        return false;
      }
      indirect = true;
      size = entry.bytes / kEntryBytes;
      index = 0;
      continue;
    }
    if (!add(entry, chain)) return false;
    if ((entry.flags & kNext) == 0) return true;
    index = entry.next;
  }
  break_with("a chain that does not end");
  return false;
}

bool Virtqueue::add(const Entry& entry, Chain& chain) {
  const bool writable = (entry.flags & kWrite) != 0;
  if (!writable && !chain.writable.empty()) {
    break_with("a buffer to read behind one to write");
    return false;
  }
  std::vector<iovec>& parts = writable ? chain.writable : chain.readable;
  if (!memory_->slice(entry.address, entry.bytes, parts)) {
    break_with("a buffer outside the guest's memory");
    return false;
  }
  if (parts.size() > kMostParts) {
    break_with("a chain of too many parts");
    return false;
  }
  (writable ? chain.writable_bytes : chain.readable_bytes) += entry.bytes;
  return true;
}

void Virtqueue::push(u16 head, u32 written) {
  if (!running()) return;
  std::byte* element = used_ring_ + 4 + u64{used_ & (place_.size - 1)} * kUsedElementBytes;
  store<u32>(element, head);
  store<u32>(element + 4, written);
  ++used_;
}

bool Virtqueue::publish() {
  if (!running() || used_ == shown_) return false;
  const u16 before = shown_;
  store<u16>(used_ring_ + 2, used_, std::memory_order_release);
  shown_ = used_;
  // The index before the look at what the guest waits for: it does the same in the other order (2.7.10).
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (!event_index_) return (load<u16>(available(0)) & kNoInterrupt) == 0;
  const u16 event = load<u16>(available(2 + place_.size));
  const bool first = !called_;
  called_ = true;
  return first || static_cast<u16>(used_ - event - 1) < static_cast<u16>(used_ - before);
}

bool Virtqueue::arm() {
  if (!running()) return false;
  if (event_index_) {
    store<u16>(used_ring_ + 4 + u64{place_.size} * kUsedElementBytes, next_);
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  return offered() != 0;
}

}  // namespace gpupool::vsock
