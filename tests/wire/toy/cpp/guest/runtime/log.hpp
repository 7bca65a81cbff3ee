// Stands in for the guest runtime in the test of generated code.
#pragma once

namespace gpupool::guest {

void log_unsupported(const char* name);

}  // namespace gpupool::guest
