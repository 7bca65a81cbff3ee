// Driver handles to objects, one registry a type. A handle is a number that is never used twice, so a stale
// or invented one is recognised without touching memory; an object lives as long as anybody works with it.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>
#include <vector>

#include "hostd/softgpu/api/api.hpp"

namespace gpupool::softgpu {

// `H` is the driver's pointer type (CUstream) or number type (CUmemGenericAllocationHandle).
template <typename T, typename H>
class Registry {
 public:
  // Handles are first, first + 16, ...; registries of different types use different ranges, so that a handle
  // of the wrong type is not found.
  explicit Registry(u64 type) : next_((0x5c00u + type) << 32 | 16) {}

  H add(std::shared_ptr<T> object) {
    const std::unique_lock lock(mutex_);
    const u64 number = next_;
    next_ += 16;
    T* raw = object.get();
    objects_.emplace(number, std::move(object));
    const H handle = to_handle(number);
    raw->handle = handle;
    return handle;
  }

  // Null when the handle is not, or no longer, an object of this type.
  std::shared_ptr<T> find(H handle) const {
    const std::shared_lock lock(mutex_);
    const auto found = objects_.find(to_number(handle));
    if (found == objects_.end()) refuse_stale(to_number(handle));
    return found == objects_.end() ? nullptr : found->second;
  }

  // The object, or INVALID_HANDLE (or what the caller says).
  std::shared_ptr<T> get(H handle, CUresult otherwise = CUDA_ERROR_INVALID_HANDLE) const {
    std::shared_ptr<T> object = find(handle);
    require(object != nullptr, otherwise);
    return object;
  }

  // The same for a handle that this library has kept itself, and that may be gone.
  std::shared_ptr<T> still_there(H handle) const {
    const std::shared_lock lock(mutex_);
    const auto found = objects_.find(to_number(handle));
    return found == objects_.end() ? nullptr : found->second;
  }

  // Removes and returns the object; null when there is none.
  std::shared_ptr<T> take(H handle) {
    const std::unique_lock lock(mutex_);
    const auto found = objects_.find(to_number(handle));
    if (found == objects_.end()) refuse_stale(to_number(handle));
    if (found == objects_.end()) return nullptr;
    std::shared_ptr<T> object = std::move(found->second);
    objects_.erase(found);
    return object;
  }

  std::vector<std::shared_ptr<T>> all() const {
    const std::shared_lock lock(mutex_);
    std::vector<std::shared_ptr<T>> result;
    result.reserve(objects_.size());
    for (const auto& [number, object] : objects_) result.push_back(object);
    return result;
  }

 private:
  // NVIDIA's driver follows handles as pointers, so the worker must never pass one that is gone. Where it is
  // fuzzed, doing so ends the process; a program that uses this library itself gets its error.
  void refuse_stale([[maybe_unused]] u64 number) const {
#ifdef GPUPOOL_STRICT_HANDLES
    if (number >> 32 != next_ >> 32) return;  // none of ours: some functions take objects of two types
    log_line("a stale or foreign handle reached the driver: %#llx", static_cast<unsigned long long>(number));
    std::abort();
#endif
  }

  static H to_handle(u64 number) {
    if constexpr (std::is_pointer_v<H>)
      return reinterpret_cast<H>(number);
    else
      return static_cast<H>(number);
  }
  static u64 to_number(H handle) {
    if constexpr (std::is_pointer_v<H>)
      return reinterpret_cast<u64>(handle);
    else
      return static_cast<u64>(handle);
  }

  mutable std::shared_mutex mutex_;
  u64 next_;
  std::unordered_map<u64, std::shared_ptr<T>> objects_;
};

}  // namespace gpupool::softgpu
