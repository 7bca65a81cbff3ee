// A slab of objects of one type in address space reserved for it, so that whether a handle from the program
// names a live object is a range check and one flag. Objects keep their address for the life of the process;
// a destroyed one is reused last, so that stale handles are recognised for as long as possible.
//
// Invariant: a slab owns nothing that its destructor would have to free. Slabs are globals, and programs (and
// libcudart) call the driver from exit handlers that run after the destructors of globals.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <mutex>
#include <new>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

template <typename T>
class Slab {
 public:
  // Null when the slab is full or the address space cannot be reserved. `fill(object)` gives the object what
  // each() is to see of it, and does nothing else.
  template <typename F>
  T* create(F fill) {
    const std::lock_guard lock(mutex_);
    Cell* const base = base_.load(std::memory_order_relaxed);
    Cell* cell = nullptr;
    if (resting_ > kQuarantine) {
      cell = take_oldest();
    } else {
      if (base == nullptr && !reserve()) return nullptr;
      const u64 used = used_.load(std::memory_order_relaxed);
      if (used == kCapacity) {
        cell = take_oldest();
        if (cell == nullptr) return nullptr;
      } else {
        cell = base_.load(std::memory_order_relaxed) + used;
        used_.store(used + 1, std::memory_order_release);
      }
    }
    T* object = new (cell->storage) T();
    fill(*object);
    cell->live.store(true, std::memory_order_release);
    return object;
  }
  T* create() {
    return create([](T&) {});
  }

  void destroy(T* object) {
    Cell* cell = reinterpret_cast<Cell*>(object);
    {
      const std::lock_guard lock(mutex_);  // each() may be looking at it
      cell->live.store(false, std::memory_order_release);
    }
    object->~T();  // may destroy others
    const std::lock_guard lock(mutex_);
    cell->next = nullptr;
    (newest_ == nullptr ? oldest_ : newest_->next) = cell;
    newest_ = cell;
    ++resting_;
  }

  // The live object at this address, or null. Safe for any value.
  T* find(const void* handle) const {
    const u64 used = used_.load(std::memory_order_acquire);  // before `base_`, which is set by then
    const u64 distance =
        reinterpret_cast<u64>(handle) - reinterpret_cast<u64>(base_.load(std::memory_order_relaxed));
    if (distance >= used * sizeof(Cell) || distance % sizeof(Cell) != 0) return nullptr;
    Cell* cell = reinterpret_cast<Cell*>(const_cast<void*>(handle));
    return cell->live.load(std::memory_order_acquire) ? reinterpret_cast<T*>(cell->storage) : nullptr;
  }

  // Calls f(object) for every live object, while none is made or destroyed: f only looks. Objects kept from
  // it may be destroyed afterwards, which is the caller's to exclude.
  template <typename F>
  void each(F f) const {
    const std::lock_guard lock(mutex_);
    Cell* const base = base_.load(std::memory_order_relaxed);
    const u64 used = used_.load(std::memory_order_relaxed);
    for (u64 i = 0; i < used; ++i)
      if (base[i].live.load(std::memory_order_relaxed)) f(*reinterpret_cast<T*>(base[i].storage));
  }

 private:
  struct Cell {
    alignas(T) u8 storage[sizeof(T)];  // first, so that the object's address is the cell's
    std::atomic<bool> live;
    Cell* next;  // in the queue of destroyed ones
  };
  static constexpr u64 kCapacity = 1u << 20;
  static constexpr u64 kQuarantine = 64;

  Cell* take_oldest() {
    Cell* cell = oldest_;
    if (cell == nullptr) return nullptr;
    oldest_ = cell->next;
    if (oldest_ == nullptr) newest_ = nullptr;
    --resting_;
    return cell;
  }

  bool reserve() {
    void* memory = mmap(nullptr, kCapacity * sizeof(Cell), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
    base_.store(static_cast<Cell*>(memory), std::memory_order_relaxed);
    return true;
  }

  mutable std::mutex mutex_;
  std::atomic<Cell*> base_{nullptr};  // set once, before `used_` says that there is something
  std::atomic<u64> used_{0};
  Cell* oldest_ = nullptr;  // of the destroyed ones
  Cell* newest_ = nullptr;
  u64 resting_ = 0;
};

}  // namespace gpupool::guest
