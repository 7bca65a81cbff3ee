// Questions whose answer is as long as the driver makes it (glGetIntegerv: one number, or four, or a list).
// Instead of a table of names that each driver extends, the driver tells: it is asked twice, into memory
// filled with two patterns, and what is then the same in both it has written.
#pragma once

#include <cstring>

#include "hostd/worker/opengl/command.hpp"

namespace gpupool::worker {

// What a driver may write at most; the dispatcher's thread alone uses it.
inline constexpr u64 kProbeBytes = 1u << 20;
u64* probe_room(bool second);

template <typename T, typename Ask>
void probe(GlCommand& command, Ask ask) {
  command.must_answer();
  auto* const first = reinterpret_cast<T*>(probe_room(false));
  auto* const second = reinterpret_cast<T*>(probe_room(true));
  constexpr u64 kBytes = wire::kMostProbed * sizeof(T);
  std::memset(first, 0xa5, kBytes);
  std::memset(second, 0x5a, kBytes);
  ask(first);
  ask(second);
  u64 count = wire::kMostProbed;
  while (count > 0 && std::memcmp(&first[count - 1], &second[count - 1], sizeof(T)) != 0) --count;
  if (8 + count * sizeof(T) > command.room_left()) count = 0;
  command.put_counted(second, count);
}

}  // namespace gpupool::worker
