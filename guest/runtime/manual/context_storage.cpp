#include "guest/runtime/manual/context_storage.hpp"

#include <algorithm>

namespace gpupool::guest {

CUresult LocalStorage::put(void* key, void* value, Destructor destructor) {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_)
    if (entry.key == key) return CUDA_ERROR_INVALID_HANDLE;
  entries_.push_back({key, value, destructor});
  return CUDA_SUCCESS;
}

CUresult LocalStorage::get(void* key, void** value) {
  const std::lock_guard lock(mutex_);
  for (const Entry& entry : entries_) {
    if (entry.key != key) continue;
    *value = entry.value;
    return CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_HANDLE;
}

CUresult LocalStorage::erase(void* key) {
  const std::lock_guard lock(mutex_);
  const auto found =
      std::find_if(entries_.begin(), entries_.end(), [key](const Entry& entry) { return entry.key == key; });
  if (found == entries_.end()) return CUDA_ERROR_INVALID_HANDLE;
  entries_.erase(found);
  return CUDA_SUCCESS;
}

void LocalStorage::clear(CUcontext context) {
  while (true) {
    Entry last{};
    {
      const std::lock_guard lock(mutex_);
      if (entries_.empty()) return;
      last = entries_.back();
      entries_.pop_back();
    }
    if (last.destructor != nullptr) last.destructor(context, last.key, last.value);
  }
}

}  // namespace gpupool::guest
