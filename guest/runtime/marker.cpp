// The symbol by which hostd tells this library from NVIDIA's (hostd/adapters/libraries.py): a hostd that is
// started with our library on its path must not load it as the driver.
// NOLINTNEXTLINE(readability-identifier-naming): an exported symbol, named as such
extern "C" __attribute__((visibility("default"), used)) const char gpupool_guest_runtime[] =
    "gpupool guest runtime";
