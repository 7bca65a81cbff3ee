// The entry point of transport_tests: leaves without tidying up, since both ends' threads run on.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstdio>

int main(int argc, char** argv) {
  doctest::Context context(argc, argv);
  const int result = context.run();
  std::fflush(nullptr);
  _exit(result);
}
