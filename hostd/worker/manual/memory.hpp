// Clearing of device memory, for everything that allocates: no vGPU sees what another left behind.
#pragma once

#include "hostd/worker/worker.hpp"

namespace gpupool::worker {

// Fills fresh memory with zeroes and waits for it, on a stream of our own that waits for nobody's work:
// afterwards every stream of the client sees the zeroes, whatever its flags. In the current context.
CUresult clear_memory(Worker& worker, CUdeviceptr address, u64 bytes);

// That stream, of the current context.
CUresult clearing_stream(Worker& worker, CUstream& stream);

// The driver's device for the session's index of it; false when the session has no such vGPU.
bool find_device(const Worker& worker, i32 index, CUdevice& device);
// The session's index of the driver's device, -1 when it is none of the session's.
i32 index_of_device(const Worker& worker, CUdevice device);
// The same in place, in a location that came from the client. Only locations on devices are let through:
// memory of the worker's host would be out of the client's reach.
CUresult localize(const Worker& worker, CUmemLocation& location);
// The same for one entry of an access list, whose flags must be some that the driver knows.
CUresult localize(const Worker& worker, CUmemAccessDesc& access);
// The same for what blocks and pools are made from: kinds of memory and of shared handles that cuda.h has,
// and no pointer of the client's.
CUresult localize(const Worker& worker, CUmemAllocationProp& properties);
CUresult localize(const Worker& worker, CUmemPoolProps& properties);

// Whether a stream of the session is being captured: then nothing may be asked of or waited for on others.
bool any_capturing(Worker& worker);

// Clients keep what they free and give it back when they ask something (docs/memory.md), so frees are issued
// later than the program's own waits. An idle stream is done with them within some microseconds, or when
// other programs have had their turn on the GPU.
inline constexpr u64 kFreePatienceNs = 2'000'000;

// The driver takes memory that a stream has freed for idle once the host has waited for that stream; the
// client's own waits do not ask it, and a query is not enough (seen on an H100). So this waits for streams
// that have nothing to do, after so much patience with those that have. True when that was all of the
// session's streams. Nothing while a stream is being captured.
bool notice_frees(Worker& worker, u64 patience_ns);

// Whether the address is a __managed__ variable's: the driver keeps those in the worker's own memory, where
// the program would look for them in vain.
bool is_managed(const Worker& worker, CUdeviceptr address);

}  // namespace gpupool::worker
