// What part of the GPU's time each vGPU that wants it gets at the moment, and how often they change. Pure.
#pragma once

#include <vector>

#include "hostd/pages/quota_page.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::arbiter {

// A vGPU as the quota page has it.
struct Tenant {
  u64 id = 0;
  u32 share_percent = 0;  // 0: none of its own
  pages::SharePolicy policy = pages::SharePolicy::elastic;
  friend bool operator==(const Tenant&, const Tenant&) = default;
};

// Whether somebody may have to wait for somebody on this GPU. `tenants`: those with sessions.
bool must_arbitrate(const std::vector<Tenant>& tenants);

// The fraction of the GPU's time for each of `wanting`, in their order. Every one gets its share. What is
// left goes to those without a share, in equal parts; if none of them wants it, to the elastic ones by their
// shares; hard ones never get more than theirs. Shares of more than 100 in sum are scaled down.
std::vector<double> divide(const std::vector<Tenant>& wanting);

// In how many nanoseconds everybody should have had a turn. Long enough that the smallest share is a slice
// that can be used, and that changing costs little; short enough that nobody waits long.
u64 period_ns(const std::vector<double>& fractions);

}  // namespace gpupool::arbiter
