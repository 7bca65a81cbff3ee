// What a program has advised and prefetched, page by page of its managed memory. Nothing moves, since managed
// memory stays where it is; but cuMemRangeGetAttribute gives back what was said.
#pragma once

#include <cuda.h>

#include <functional>
#include <map>

#include "wire/cpp/device_info.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::guest {

struct Advice {
  bool read_mostly = false;
  CUmemLocation preferred{CU_MEM_LOCATION_TYPE_INVALID, 0};
  CUmemLocation prefetched{CU_MEM_LOCATION_TYPE_INVALID, 0};
  u64 accessed_by = 0;  // bit d: device d; kHostBit: the host
  static constexpr u64 kHostBit = u64{1} << wire::kMaxDevices;
};

// Not thread-safe. Ranges are [begin, end); they grow to whole pages.
class AdviceMap {
 public:
  void change(u64 begin, u64 end, const std::function<void(Advice&)>& apply);
  void forget(u64 begin, u64 end);
  // Calls `look` for each run of pages; pages that nothing was said about give a default Advice.
  void each(u64 begin, u64 end, const std::function<void(const Advice&)>& look) const;

 private:
  struct Run {
    u64 end = 0;
    Advice advice;
  };
  void split(u64 at);
  std::map<u64, Run> runs_;
};

}  // namespace gpupool::guest
