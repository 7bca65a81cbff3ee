// A few threads that help with large copies between the program's memory and the window: one core moves 6 to
// 9 GB/s, four move 36 to 42 (measured on the H100 host). Started at the first large copy; they sleep
// otherwise and take no signals. A forked child has no session and never gets here.
#pragma once

#include <cstddef>
#include <functional>

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

// How many threads a copy of this size should use, the caller included: 1 for small copies and on one or two
// cores.
u32 copy_thread_count(u64 bytes);

// Runs work(0 .. threads-1), 0 on the calling thread, and returns when all are done. When the helpers are
// busy with another copy, the caller does everything: work(0 of 1) is then called with count 1.
void run_copy(u32 threads, const std::function<void(u32 index, u32 count)>& work);

// Copies like memcpy, with streaming stores where the processor has them in 32-byte form: the data goes to
// memory that this core will not read back soon. For large copies towards the program.
void copy_streaming(void* destination, const void* source, std::size_t bytes);

}  // namespace gpupool::guest
