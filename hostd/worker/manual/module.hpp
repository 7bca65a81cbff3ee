// What module.cpp and library.cpp share.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

inline constexpr u64 kMaxNameBytes =
    64 * 1024;  // of a kernel or variable; mangled names of templates get long

// Calls the driver for the name of each item and answers a list of names, each ended by a NUL: u64 bytes, and
// where the client left that much room, the list.
template <typename Item, typename NameOf>
CUresult answer_names(Request& request, const std::vector<Item>& items, u64 room, NameOf name_of) {
  std::string text;
  for (const Item& item : items) {
    const char* name = nullptr;
    if (const CUresult result = name_of(&name, item); result != CUDA_SUCCESS) return result;
    text.append(name).push_back('\0');
  }
  request.out->put<u64>(text.size());
  if (text.size() <= room) request.out->put_array(text.data(), text.size());
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
