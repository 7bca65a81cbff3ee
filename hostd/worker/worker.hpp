// The worker's state while it serves one client, and the interface that handlers are written against.
//
// One dispatcher thread executes slots in ticket order; it alone calls the driver (but launch_crew.hpp), so
// handlers need no locks. A handler reads its arguments from `request.in` (a private copy), looks handles up,
// calls the driver through `worker.driver` and writes results to `request.out`. It returns the driver's
// result. It throws wire::ProtocolError for what no honest client sends; a stale handle is an honest mistake
// and gives CUDA_ERROR_INVALID_HANDLE.
#pragma once

#include <cuda.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "driver_api.hpp"  // generated: struct worker::DriverApi, one typed pointer an export
#include "hostd/pages/lease_page.hpp"
#include "hostd/worker/caps.hpp"
#include "hostd/worker/code_entries.hpp"
#include "hostd/worker/drawing.hpp"
#include "hostd/worker/exchange.hpp"
#include "hostd/worker/handle_table.hpp"
#include "hostd/worker/parcels.hpp"
#include "hostd/worker/usage_page.hpp"
#include "hostd/worker/vgpu_memory.hpp"
#include "wire/cpp/layout.hpp"
#include "wire/cpp/reader.hpp"
#include "wire_functions.hpp"  // generated: enum class wire::Function

namespace gpupool::worker {

// The fields of a slot after the one copy, and its payload.
struct Request {
  wire::Function function{};
  u16 flags = 0;
  u32 thread = 0;
  u64 ticket = 0;
  CUcontext context = nullptr;  // current in the driver already when the handler runs; null for none
  u32 context_index = 0;
  wire::Handle stream_handle;
  CUstream stream = nullptr;  // looked up from the header; null when the header names none
  u32 stream_context = 0;     // handle index of that stream's context
  u64 bulk_offset = 0;        // checked: inside the window's data area
  u64 bulk_size = 0;
  wire::Reader in{std::span<const u8>{}};
  wire::Writer* out = nullptr;
  bool marked = false;          // set by a handler that has issued the mark itself
  bool answered_later = false;  // ... that keeps the answer until the GPU is done (drawing.hpp)
};

struct StreamEntry {
  CUstream stream = nullptr;
  u32 context = 0;             // handle index of its context
  bool capturing = false;      // between begin and end of a capture that this stream began or joined
  u64 capture_id = 0;          // the driver's, while capturing
  bool began_capture = false;  // it began that capture; the others have joined it
  bool noted = false;          // activity.hpp knows that it may have work outstanding
  u64 last_mark = 0;           // ticket + 1 of the newest mark issued
};

struct EventEntry {
  CUevent event = nullptr;
};

// A buffer or an image of OpenGL that the driver shares with CUDA (manual/graphics_resource.cpp).
struct GraphicsEntry {
  CUgraphicsResource resource = nullptr;
  u32 opengl_context = 0;  // the client's index of one that knows the object
  u32 context = 0;         // handle index of CUDA's context
  bool mapped = false;
  // Named to the client, valid while it is mapped.
  std::vector<wire::Handle> arrays;
};

class LaunchCrew;
class GlServer;

class Worker {
 public:
  DriverApi driver{};
  wire::Window window;
  bool shared_memory = true;  // false over a stream transport
  int bell_socket = -1;       // where the client is waked; -1: by a futex in the window, or not at all
  // Registering makes pages (populate.hpp); known with the first context, by the page at kLeftToDriver.
  bool driver_makes_pages = false;
  static constexpr u64 kLeftToDriver = wire::kHeapOffset - 4096;
  std::vector<CUdevice> devices;  // the session's vGPUs, in the order that the client sees
  // What hostd reads for NVML in the guest and for its metrics; never null.
  UsagePage* usage = open_usage_page(-1, wire::kMaxDevices);
  Tally tally;
  // Over which the arbiters give leases (gate.hpp), by index of device; none where nothing is enforced.
  std::vector<pages::LeasePage*> leases;
  // Of each of the devices.
  std::array<VgpuMemory, wire::kMaxDevices> memory;

  Caps caps;
  PinnedMemory pinned;
  // To be called before the first object.
  void set_caps(const Caps& wanted);

  // Objects by wire handle. Every type has a cap.
  HandleTable<CUcontext> contexts{wire::HandleKind::context};
  HandleTable<StreamEntry> streams{wire::HandleKind::stream};
  HandleTable<EventEntry> events{wire::HandleKind::event};
  HandleTable<ModuleEntry> modules{wire::HandleKind::module};
  HandleTable<LibraryEntry> libraries{wire::HandleKind::library};
  HandleTable<FunctionEntry> functions{wire::HandleKind::function};
  HandleTable<CUgraph> graphs{wire::HandleKind::graph};
  HandleTable<CUgraphExec> graph_execs{wire::HandleKind::graph_exec};
  HandleTable<CUgraphNode> graph_nodes{wire::HandleKind::graph_node};
  HandleTable<CUmemoryPool> mem_pools{wire::HandleKind::mem_pool};
  HandleTable<CUarray> arrays{wire::HandleKind::array};
  HandleTable<CUmipmappedArray> mipmapped_arrays{wire::HandleKind::mipmapped_array};
  HandleTable<std::shared_ptr<LinkEntry>> link_states{wire::HandleKind::link_state};
  HandleTable<CUmemGenericAllocationHandle> mem_allocations{wire::HandleKind::mem_allocation};
  HandleTable<CUtexref> texrefs{wire::HandleKind::texref};
  HandleTable<CUsurfref> surfrefs{wire::HandleKind::surfref};
  HandleTable<GraphicsEntry> graphics_resources{wire::HandleKind::graphics_resource};
  // Descriptors that the client has sent; on one machine only.
  Parcels parcels;
  // What sessions of one tenant share.
  Exchange exchange;
  // By client thread: what the compiler answered, when it is longer than a reply (manual/module_image.cpp).
  std::unordered_map<u32, std::vector<u8>> jit_results;

  // Graphs that the client has asked for while they were being captured, by the driver's capture id.
  std::unordered_map<u64, CUgraph> capture_graphs;

  // The graphs inside conditional nodes, which the driver tells once, when a node is added.
  std::unordered_map<CUgraphNode, std::vector<CUgraph>> conditional_bodies;

  // The GPU can write words itself (CU_DEVICE_ATTRIBUTE_CAN_USE_64_BIT_STREAM_MEM_OPS); else a host function
  // does.
  bool stream_memory_operations = true;

  // Green contexts by the index of their handle: the driver's, and the index of the primary context that owns
  // what is made in them.
  struct Green {
    CUgreenCtx context = nullptr;
    u32 owner = 0;
  };
  std::unordered_map<u32, Green> green_contexts;
  // Whose a thing is that was made while the context of that index was current.
  u32 owner_of(u32 context) const {
    if (green_contexts.empty()) [[likely]]
      return context;
    const auto green = green_contexts.find(context);
    return green == green_contexts.end() ? context : green->second.owner;
  }

  // Issues launches of several streams at once (launch_crew.hpp); null where only the dispatcher launches.
  std::shared_ptr<LaunchCrew> crew;

  // OpenGL of this session (hostd/worker/opengl); null until the client asks for it, and where it may not.
  bool may_use_opengl = false;
  std::shared_ptr<GlServer> opengl;
  std::shared_ptr<Drawing> drawing;  // the same
  bool answers_wait = false;         // drawing->resume() has something to do, sooner or later

  // A handler that makes another context current in the driver (or destroys one) sets this.
  bool context_changed = false;
  // Answers whether the client is stopped (Ctrl-Z, a debugger); null where that cannot be known.
  std::function<bool()> client_stopped;

  // Writes ticket + 1 into the word of `stream` from the GPU, after everything issued to it so far.
  CUresult mark(wire::Handle stream, u64 ticket);
  // Registers host memory with the driver for every context, at its own address; NOT_SUPPORTED if the driver
  // gives it another one. It stays registered until it is unregistered, whichever contexts the client
  // destroys.
  CUresult register_host(void* address, u64 bytes);
  CUresult unregister_host(void* address);
  // Registers [offset, +bytes) of the window with the driver (host memory the GPU can reach).
  CUresult register_window(u64 offset, u64 bytes);
  CUresult unregister_window(u64 offset);
  // Address of a piece of the window, already checked.
  u8* at(u64 offset) const { return window.base + offset; }
};

using Handler = CUresult (*)(Worker&, Request&);

}  // namespace gpupool::worker
