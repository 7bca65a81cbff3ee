// Copies of one run of bytes, in the stream's order, with the driver's rules for when a call may return: from
// pageable memory once the source has been copied, to pageable memory once the data has landed, with pinned
// memory at once unless the call is a synchronous one.
#pragma once

#include <cuda.h>

#include "guest/runtime/objects.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::guest {

enum class CopyCall : u8 {
  asynchronous,
  synchronous,  // cuMemcpy and its relatives without a stream argument
};

CUresult copy_to_device(u64 device, const void* host, u64 bytes, Stream& stream, CopyCall call);
CUresult copy_to_host(void* host, u64 device, u64 bytes, Stream& stream, CopyCall call);
CUresult copy_on_device(u64 destination, u64 source, u64 bytes, Stream& stream, CopyCall call);
// Both addresses may be anything: finds out what they are.
CUresult copy_unified(u64 destination, u64 source, u64 bytes, Stream& stream, CopyCall call);

// What an address is, for copies that do not say it themselves.
enum class Side : u8 { pageable, pinned, device };
Side side_of(u64 address);
bool is_pinned(u64 address);

// CUDA_SUCCESS when device memory (or pinned memory) covers the range; asks the worker when the address is
// not in the table (a module's variable, say). INVALID_VALUE otherwise, as the driver answers.
CUresult check_device_range(u64 address, u64 bytes);

// Waits until all work on the stream is done; for the legacy stream that includes the context's blocking
// streams.
CUresult wait_for_stream(Stream& stream);
// For a copy between contexts that is given no stream: cuda.h has it come after all that is pending in both.
// The caller waits for the copy itself, so that it also comes before what follows there.
CUresult wait_for_both(Context& one, Context& other);

// The stream that a copy goes to, or null with what the driver would answer: no context, a bad handle, a call
// that a stream capture forbids.
Stream* copy_stream(CUstream stream, CopyCall call, CUresult& error);

}  // namespace gpupool::guest
