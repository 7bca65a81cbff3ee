#include "hostd/worker/caps.hpp"

#include <set>
#include <string>

#include "hostd/worker/log.hpp"
#include "hostd/worker/worker.hpp"
#include "worker_manual.hpp"  // generated

namespace gpupool::worker {

void note_cap(std::string_view what) {
  // Only the dispatcher's thread comes here; a client that runs into one cap a million times makes one line.
  static thread_local std::set<std::string, std::less<>> told;
  if (told.insert(std::string(what)).second)
    log(LogLevel::warning, "the session is at a cap of [limits]: out of memory", what);
}

bool PinnedMemory::take(const Caps& caps, u64 address, u64 bytes) {
  if (bytes > caps.pinned_bytes || bytes_ > caps.pinned_bytes - bytes) {
    note_cap("limits.pinned_mib");
    return false;
  }
  pieces_[address] = bytes;
  bytes_ += bytes;
  return true;
}

void PinnedMemory::give_back(u64 address) {
  const auto piece = pieces_.find(address);
  if (piece == pieces_.end()) return;
  bytes_ -= piece->second;
  pieces_.erase(piece);
}

void Worker::set_caps(const Caps& wanted) {
  caps = wanted;
  const auto full = [] { note_cap("limits.handles"); };
  const auto all = [&](auto&... tables) { (tables.set_capacity(wanted.handles + 1, full), ...); };
  all(contexts, events, modules, libraries, functions, graphs, graph_execs, graph_nodes, mem_pools, arrays,
      mipmapped_arrays, link_states, mem_allocations, texrefs, surfrefs, graphics_resources);
  streams.set_capacity(wanted.streams + 1, full);
}

// u32 kind. The client holds itself to the caps of handles, so that it can refuse at once; this is how the
// log comes to know.
CUresult handle_cap_reached(Worker&, Request& request) {
  const auto kind = request.in.get<u32>();
  request.in.finish();
  if (kind >= static_cast<u32>(wire::HandleKind::count_)) throw wire::ProtocolError("no such kind of handle");
  note_cap(kind == static_cast<u32>(wire::HandleKind::stream) ? "limits.streams" : "limits.handles");
  return CUDA_SUCCESS;
}

}  // namespace gpupool::worker
