// The entry point of transport_tests: leaves without tidying up, since both ends' threads run on.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>

#ifdef __SANITIZE_THREAD__
// ThreadSanitizer notes what sendmsg() reads when the call has returned. By then the bytes may have arrived,
// been answered, and their place used for the next: that looks like a race and is none, since the kernel has
// copied them. A place that is used again too early shows as wrong data in these tests.
extern "C" const char* __tsan_default_suppressions() {
  return "race:gpupool::wire::send_all\n";
}
#endif

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  std::fflush(nullptr);
  _exit(result);
}
