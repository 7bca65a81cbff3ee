// Stream capture: turning what is put on streams into a graph instead of executing it.
#pragma once

#include <memory>
#include <thread>
#include <vector>

#include "hostd/softgpu/api/event.hpp"
#include "hostd/softgpu/api/graph.hpp"

namespace gpupool::softgpu {

// One capture in progress. Guarded by graph_mutex().
struct Capture {
  u64 id = 0;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  std::thread::id thread;
  std::shared_ptr<Graph> graph;
  Stream* origin = nullptr;
  std::vector<std::shared_ptr<Stream>> streams;  // the origin and all that joined
  bool invalidated = false;
  bool into_existing = false;  // cuStreamBeginCaptureToGraph
};

// Error STREAM_CAPTURE_UNSUPPORTED, ending the stream's capture, for what has no meaning while capturing:
// waits, queries. Error STREAM_CAPTURE_IMPLICIT for the legacy stream while blocking streams are captured.
void refuse_while_capturing(Stream& stream);
// For calls that are unsafe while this thread, or in global mode any thread, captures: allocations and frees.
void refuse_unsafe_call();
// A stream goes away while it captures.
void abandon_capture(Stream& stream);

// Records an event into the stream's capture; false when the stream is not capturing.
bool record_captured(Stream& stream, const std::shared_ptr<Event>& event, bool external);
// Makes the stream wait for the event where one of the two is being captured; false when neither is.
bool wait_captured(const std::shared_ptr<Stream>& stream, const std::shared_ptr<Event>& event, bool external);
// Error CAPTURED_EVENT when the event's last record was into a capture that is still going on.
void refuse_captured_event(Event& event);

// Sets this thread's mode and returns the one before.
CUstreamCaptureMode exchange_capture_mode(CUstreamCaptureMode mode);

// These expect graph_mutex() to be held.
void begin_capture(const std::shared_ptr<Stream>& stream, CUstreamCaptureMode mode,
                   std::shared_ptr<Graph> graph, std::vector<std::shared_ptr<GraphNode>> frontier);
CUresult end_capture(const std::shared_ptr<Stream>& stream, CUgraph* out);

}  // namespace gpupool::softgpu
