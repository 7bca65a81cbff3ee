// The entry point of transport_tests: leaves without tidying up, since both ends' threads run on.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>

#ifdef __SANITIZE_THREAD__
// Both look like races and are none:
// * sendmsg() is noted as reading when the call has returned. By then the bytes may have arrived, been
//   answered, and their place used for the next: the kernel has let go of them. A place that is used again
//   too early shows as wrong data in these tests.
// * mmap() is noted as writing what it maps. The worker's thread finds the mapping in /proc/self/maps.
extern "C" __attribute__((visibility("default"))) const char* __tsan_default_suppressions() {
  return "race:gpupool::wire::send_all\nrace:gpupool::wire::ZeroCopySocket\nrace:gpupool::guest::make_shared_"
         "memory\n";
}
#endif

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  std::fflush(nullptr);
  _exit(result);
}
