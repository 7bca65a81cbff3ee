// The file behind shared memory of the program's own.
#pragma once

#include <optional>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

struct SharedMapping {
  int fd = -1;  // the caller closes it
  u64 offset = 0;
};

// The file that [begin, end), whole pages, is a shared and writable mapping of; nothing when it is private
// memory, several mappings, or the file cannot be opened any more.
std::optional<SharedMapping> find_shared_mapping(u64 begin, u64 end);

}  // namespace gpupool::guest
