// What other parts need to know of events.
#pragma once

#include <functional>

#include "guest/runtime/session.hpp"

namespace gpupool::guest {

// Event::recorded of an event that was last recorded in a capturing stream: it has no completion to wait for.
inline constexpr u64 kRecordedInCapture = ~0ull;

constexpr u64 pack_record(u32 word, u64 value) {
  return (static_cast<u64>(word) << 48) | value;
}
constexpr u32 record_word(u64 recorded) {
  return static_cast<u32>(recorded >> 48);
}
constexpr u64 record_value(u64 recorded) {
  return recorded & 0xffff'ffff'ffffu;
}

// Says that the event will complete when the word reaches `value`, unless a newer record says otherwise
// already.
void set_recorded(Event& event, u32 word, u64 value);

// A new event of the context; `create` has the worker make its counterpart.
CUresult make_event(CUevent* out, Context& context, u32 flags,
                    const std::function<CUresult(const Event&)>& create);

}  // namespace gpupool::guest
