#include "guest/runtime/manual/advice.hpp"

#include <iterator>

namespace gpupool::guest {
namespace {

constexpr u64 kPage = 4096;

u64 page_down(u64 address) {
  return address / kPage * kPage;
}
u64 page_up(u64 address) {
  return page_down(address + kPage - 1);
}

}  // namespace

void AdviceMap::split(u64 at) {
  auto next = runs_.upper_bound(at);
  if (next == runs_.begin()) return;
  auto& [begin, run] = *std::prev(next);
  if (begin == at || run.end <= at) return;
  runs_.emplace_hint(next, at, Run{run.end, run.advice});
  run.end = at;
}

void AdviceMap::change(u64 begin, u64 end, const std::function<void(Advice&)>& apply) {
  begin = page_down(begin);
  end = page_up(end);
  split(begin);
  split(end);
  for (u64 at = begin; at < end;) {
    auto run = runs_.lower_bound(at);
    if (run == runs_.end() || run->first > at) {
      const u64 stop = run == runs_.end() || run->first > end ? end : run->first;
      run = runs_.emplace_hint(run, at, Run{stop, {}});
    }
    apply(run->second.advice);
    at = run->second.end;
  }
}

void AdviceMap::forget(u64 begin, u64 end) {
  begin = page_down(begin);
  end = page_up(end);
  split(begin);
  split(end);
  runs_.erase(runs_.lower_bound(begin), runs_.lower_bound(end));
}

void AdviceMap::each(u64 begin, u64 end, const std::function<void(const Advice&)>& look) const {
  begin = page_down(begin);
  end = page_up(end);
  auto run = runs_.upper_bound(begin);
  if (run != runs_.begin() && std::prev(run)->second.end > begin) --run;
  for (u64 at = begin; at < end; ++run) {
    if (run == runs_.end() || run->first > at) look(Advice{});
    if (run == runs_.end() || run->first >= end) return;
    look(run->second.advice);
    at = run->second.end;
  }
}

}  // namespace gpupool::guest
