// Context-local storage: values that libraries attach to a context under a key (export table c693336e). Each
// may name a destructor, run when the context ends, newest first, as the driver does (measured).
#pragma once

#include <cuda.h>

#include <memory>
#include <mutex>
#include <vector>

#include "guest/runtime/objects.hpp"

namespace gpupool::guest {

class LocalStorage {
 public:
  using Destructor = void (*)(CUcontext context, void* key, void* value);

  // INVALID_HANDLE when the key has a value already.
  CUresult put(void* key, void* value, Destructor destructor);
  // INVALID_HANDLE when the key has no value.
  CUresult get(void* key, void** value);
  // Forgets a value without running its destructor.
  CUresult erase(void* key);
  // Runs every destructor, without holding the lock: they may call back.
  void clear(CUcontext context);

 private:
  struct Entry {
    void* key;
    void* value;
    Destructor destructor;
  };
  std::mutex mutex_;
  std::vector<Entry> entries_;  // a handful: one a runtime library
};

}  // namespace gpupool::guest
