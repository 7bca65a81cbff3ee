// Remembers answers of pure functions of their arguments, a thread at a time: no locks, no allocation after
// the first answer. Libraries ask for occupancies and tensor maps before every launch.
#pragma once

#include <array>
#include <cstring>
#include <memory>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

// The arguments, as bytes. One that outgrows `Bytes` is not remembered.
template <u64 Bytes>
struct AnswerKey {
  alignas(8) std::array<u8, Bytes> bytes{};
  u64 used = 0;
  bool fits = true;

  template <typename T>
  void add(const T& value) {
    add(&value, 1);
  }
  template <typename T>
  void add(const T* values, u64 count) {
    const u64 size = count * sizeof(T);
    fits = fits && size <= Bytes - used;
    if (!fits) return;
    if (size != 0) std::memcpy(bytes.data() + used, values, size);
    used += size;
  }
  [[nodiscard]] u64 hash() const {
    u64 mixed = used;
    for (u64 i = 0; i < (used + 7) / 8; ++i) {
      u64 word;
      std::memcpy(&word, bytes.data() + i * 8, sizeof word);
      mixed = (mixed ^ word) * 0x9e37'79b9'7f4a'7c15;
      mixed ^= mixed >> 29;
    }
    return mixed;
  }
};

// Direct-mapped: a new answer replaces the one in its place.
template <typename Key, typename Value, u64 Places>
class AnswerCache {
 public:
  // Null when the answer is not known.
  const Value* find(const Key& key) const {
    if (entries_ == nullptr || !key.fits) return nullptr;
    const Entry& entry = (*entries_)[key.hash() % Places];
    const bool same =
        entry.key.used == key.used && std::memcmp(entry.key.bytes.data(), key.bytes.data(), key.used) == 0;
    return same ? &entry.value : nullptr;
  }
  void remember(const Key& key, const Value& value) {
    if (!key.fits) return;
    if (entries_ == nullptr) entries_ = std::make_unique<std::array<Entry, Places>>();
    (*entries_)[key.hash() % Places] = {key, value};
  }

 private:
  struct Entry {
    Key key;
    Value value{};
  };
  std::unique_ptr<std::array<Entry, Places>> entries_;
};

// The cache of this thread that lives at a place in its ThreadState: a thread_local of its own would be
// destroyed before a program's exit handlers have made their last calls.
template <typename Cache>
Cache& cache_at(std::shared_ptr<void>& place) {
  if (place == nullptr) place = std::make_shared<Cache>();
  return *static_cast<Cache*>(place.get());
}

}  // namespace gpupool::guest
