// What profile.cpp writes and cli/profile_file.py reads: one file a process, mapped while it runs, so that it
// is current at any time and outlives the process however that ends.
//
//   Header | names: function_count x kNameBytes | Thread 0 | Thread 1 | ...     at multiples of a page
//   Thread: ThreadHeader | Counter x function_count | Event x event_capacity
//
// Each Thread has one writer at a time; readers may see a call half counted, never a torn number.
#pragma once

#include <atomic>

#include "wire/cpp/types.hpp"

namespace gpupool::guest::profile {

inline constexpr u64 kMagic = 0x3130'464f'5250'5047;  // "GPPROF01"
inline constexpr u64 kPage = 4096;
inline constexpr u64 kNameBytes = 64;
inline constexpr u32 kMostThreads = 256;  // at one time; an ended thread's place is reused
inline constexpr u32 kEvents = 1u << 16;  // a thread, unless asked otherwise: 3 MiB; the newest stay
inline constexpr u32 kMostEvents = 1u << 22;

struct Header {
  std::atomic<u64> magic;  // written last
  u32 pid;
  u32 function_count;
  u64 names_offset;
  u64 threads_offset;
  u64 thread_bytes;
  u64 event_capacity;
  u64 opened_ns;                    // CLOCK_MONOTONIC, as all times here
  std::atomic<u32> threads;         // that there are in the file
  std::atomic<u32> ended;           // 1: the program came to its exit handlers
  std::atomic<u64> calls_left_out;  // of threads that found no room in the file
  char transport[16];
  char device[256];
  char program[64];
};
static_assert(sizeof(Header) <= kPage);

struct ThreadHeader {
  std::atomic<u64> events;    // recorded so far; number n is at n % event_capacity
  std::atomic<u64> messages;  // that the process had sent when this thread's newest call ended
  u64 reserved[6];
};

struct Counter {
  std::atomic<u64> calls, waited_calls;
  std::atomic<u64> total_ns, waited_ns, longest_ns;
  std::atomic<u64> to_device_bytes, from_device_bytes;
  u64 reserved;
};
static_assert(sizeof(ThreadHeader) == 64 && sizeof(Counter) == 64);

struct Event {
  u64 start_ns, duration_ns, waited_ns;
  u64 to_device_bytes, from_device_bytes;
  u32 function;
  u32 thread;  // gettid
};
static_assert(sizeof(Event) == 48);

}  // namespace gpupool::guest::profile
