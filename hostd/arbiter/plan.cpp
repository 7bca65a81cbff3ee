#include "hostd/arbiter/plan.hpp"

#include <algorithm>
#include <numeric>

namespace gpupool::arbiter {
namespace {

// Measured on an H100: changing costs 0.2 ms, and a lease of 2 ms can still be filled to within a tenth.
constexpr double kUsefulSliceNs = 2'500'000;
constexpr double kEfficientSliceNs = 15'000'000;  // on average: changing then costs some 1.5 %
constexpr double kShortestPeriodNs = 30'000'000;
constexpr double kLongestOfManyNs = 100'000'000;
constexpr double kLongestPeriodNs = 200'000'000;

}  // namespace

bool must_arbitrate(const std::vector<Tenant>& tenants) {
  const auto is_capped = [](const Tenant& one) {
    return one.policy == pages::SharePolicy::hard && one.share_percent != 0 && one.share_percent < 100;
  };
  const auto has_share = [](const Tenant& one) { return one.share_percent != 0; };
  return std::ranges::any_of(tenants, is_capped) ||
         (tenants.size() > 1 && std::ranges::any_of(tenants, has_share));
}

std::vector<double> divide(const std::vector<Tenant>& wanting) {
  double shares = 0;
  double elastic = 0;
  double without = 0;
  for (const Tenant& one : wanting) {
    shares += one.share_percent;
    if (one.share_percent == 0)
      without += 1;
    else if (one.policy == pages::SharePolicy::elastic)
      elastic += one.share_percent;
  }
  const double whole = std::max(shares, 100.0);
  const double left = (whole - shares) / whole;
  std::vector<double> fractions;
  for (const Tenant& one : wanting) {
    double fraction = one.share_percent / whole;
    if (one.share_percent == 0)
      fraction = left / without;
    else if (without == 0 && one.policy == pages::SharePolicy::elastic)
      fraction += left * one.share_percent / elastic;
    fractions.push_back(fraction);
  }
  return fractions;
}

u64 period_ns(const std::vector<double>& fractions) {
  double smallest = 1;
  double turns = 0;
  for (const double fraction : fractions)
    if (fraction > 0) {
      smallest = std::min(smallest, fraction);
      ++turns;
    }
  const double wanted =
      std::max(kUsefulSliceNs / smallest, std::min(kEfficientSliceNs * turns, kLongestOfManyNs));
  return static_cast<u64>(std::clamp(wanted, kShortestPeriodNs, kLongestPeriodNs));
}

}  // namespace gpupool::arbiter
