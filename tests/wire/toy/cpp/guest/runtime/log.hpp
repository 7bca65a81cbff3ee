// Stands in for the guest runtime in the test of generated code.
#pragma once

namespace gpupool::guest {

void log_failure(const char* name, int result);
void log_unsupported(const char* name);

}  // namespace gpupool::guest
