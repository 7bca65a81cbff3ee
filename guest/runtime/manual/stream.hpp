// What other parts need to know of streams.
#pragma once

#include "guest/runtime/session.hpp"

namespace gpupool::guest {

// True when everything put on the stream so far has completed. Unlike Session::idle() it knows that the
// legacy stream's word covers the context's blocking streams, and that the legacy stream covers them when
// asked itself.
bool finished(const Session& session, const Stream& stream);

// The smallest value of the stream's word that shows all of its work complete.
u64 needed_value(const Session& session, const Stream& stream);

// An id that no stream or capture of this process has had (cuStreamGetId).
u64 new_stream_id();

// Looks, at most every few milliseconds, whether the current context has faulted: for programs that poll
// instead of waiting. A faulted context never writes its words.
CUresult poll_for_fault(Session& session);

}  // namespace gpupool::guest
