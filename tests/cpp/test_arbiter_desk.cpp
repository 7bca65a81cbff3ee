// The arbiter's side of the pages: what it makes of what workers write, lies too.
#include <doctest/doctest.h>

#include "hostd/arbiter/desk.hpp"

namespace gpupool::worker {
void drain_standard_error() {}  // what the log waits for in a worker
}  // namespace gpupool::worker
