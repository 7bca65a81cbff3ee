// One client's session inside the fuzzer's process: a worker, its dispatcher and a window, from the first
// message to the clean-up.
#pragma once

#include "hostd/worker/worker.hpp"
#include "tests/fuzz/program.hpp"

namespace gpupool::fuzz {

struct Harness {
  worker::DriverApi driver;
  std::vector<CUdevice> devices;
  wire::Window window;
  // A thread a session, because the worker keeps some state of the driver's by thread. Costs a tenth of a
  // millisecond.
  bool own_thread = false;
  void (*before_session)(Harness&) = nullptr;  // in the session's thread, as is the next
  void (*after_session)(Harness&) = nullptr;   // gives back what the worker does not keep
};

// A window at the place where real ones are, so that addresses in recorded sessions fit.
wire::Window map_window();

// Plays a program as a client and lets the worker serve it.
void play(Harness& harness, const Program& program);

// Lets the worker open the first device, which it does once in its life.
void warm_up(Harness& harness);

// Makes up a driver: every function succeeds, new objects have numbers that are never used twice, all other
// results stay as they are.
void make_up_driver(worker::DriverApi& driver);

// A driver that computes, with everything bounded that could keep a session busy for ever.
void bound_driver(worker::DriverApi& driver);
// Frees the memory that the last session allocated and did not free.
void free_memory();

}  // namespace gpupool::fuzz
