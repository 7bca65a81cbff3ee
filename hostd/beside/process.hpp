// What programs beside hostd have in common that live as long as a GPU or a VM: the arbiter and the relay.
#pragma once

#include "hostd/worker/log.hpp"

namespace gpupool::beside {

inline constexpr int kExitAnother = 10;  // there is one already (hostd/adapters/arbiter_process.py)
inline constexpr int kExitSetup = 14;

// What main() begins with; `understood`: the command line was. 0, or the exit code.
int begin(const char* name, bool understood, const worker::LogStyle& style);

// The lock that makes this process the only one of that folder, and its pid for a later hostd. Held until the
// process ends. 0, or the exit code.
int take_place(int folder, const char* file);

}  // namespace gpupool::beside
