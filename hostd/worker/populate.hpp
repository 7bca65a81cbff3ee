// Memory that the GPU is going to reach must have its pages first, and making them is most of what
// registering costs: 64 MiB took 34-44 ms to register untouched and 3.4-4.3 ms with its pages there (H100, a
// virtual machine). The driver makes them one by one in the thread that calls it; here several threads do,
// and in huge pages where the system permits them (/sys/kernel/mm/transparent_hugepage/shmem_enabled).
//
// The software GPU needs no pages, and memory that nobody touches should cost nothing there. So the last page
// of what the first context registers is left to the driver: if it makes that one, it makes all.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// Asks for huge pages in a mapping, from its next page on. Where there are none, nothing changes.
void prefer_huge_pages(void* address, u64 bytes);

// Makes the pages of a mapping, as far as the kernel can (5.14): what it leaves out, whoever registers the
// memory makes or fails to. Contents stay. `address` and `bytes` are whole pages.
void make_pages(void* address, u64 bytes);
// The same with that many threads, this one among them.
void make_pages(void* address, u64 bytes, u32 threads);

// Whether a page is in memory.
bool page_present(void* page);

}  // namespace gpupool::worker
