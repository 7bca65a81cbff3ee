// The client's own objects behind CUcontext, CUstream, CUevent, CUmodule, CUlibrary, CUfunction and CUkernel.
//
// A driver handle that the program holds is the address of one of these, in a slab reserved for its type; so
// a look-up is one range check and one load, and a wild or destroyed handle is recognised without touching
// foreign memory. Every other handle type (graphs, pools, arrays...) is the wire handle itself, cast to the
// pointer type: the worker checks those.
#pragma once

#include <cuda.h>

#include <array>
#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "guest/runtime/slab.hpp"
#include "wire/cpp/device_info.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::guest {

struct Context;
struct Module;

struct GraphContents;

// One stream-capture in progress; shared by the streams that have joined it.
struct Capture {
  u64 id = 0;
  CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
  u32 thread = 0;  // client thread that began it
  struct Stream* origin = nullptr;
  bool into_existing = false;  // cuStreamBeginCaptureToGraph
  std::atomic<bool> invalidated{false};
  // Guarded by capture_mutex().
  std::vector<struct Stream*> streams;      // the origin and those that joined
  bool ended = false;                       // events recorded in it can no longer be waited for
  std::shared_ptr<GraphContents> contents;  // what the client must remember of the graph being made
};

struct Stream {
  wire::Handle handle;
  Context* context = nullptr;
  Context* green = nullptr;  // the green context it was made in, if any; `context` is then the primary one
  u32 flags = 0;             // CUstream_flags
  int priority = 0;
  u64 id = 0;                        // cuStreamGetId
  std::atomic<u64> last_work{0};     // ticket + 1 of the newest slot that put work on this stream
  std::atomic<u64> last_mark{0};     // the same for the newest slot that carried kMark
  std::shared_ptr<Capture> capture;  // guarded by capture_mutex(); `capturing` mirrors it for the launch path
  std::atomic<bool> capturing{false};
  bool implicit = false;  // the legacy or a per-thread default stream: never destroyed by the program
};

struct Event {
  wire::Handle handle;
  Context* context = nullptr;
  u32 flags = 0;  // CUevent_flags
  // Where completion shows: word index << 48 | value; 0 when never recorded (then it counts as complete).
  std::atomic<u64> recorded{0};
  std::shared_ptr<Capture>
      capture;  // set when last recorded into a capturing stream; guarded by capture_mutex()

  // Other processes may record it too: no word says when it is complete, the worker must be asked.
  [[nodiscard]] bool interprocess() const { return (flags & CU_EVENT_INTERPROCESS) != 0; }
};

struct Parameter {
  u32 offset = 0;
  u32 size = 0;
};

// What a function is on one device. `attributes` is what a launch there obeys; `kernel_attributes` what
// cuKernelGetAttribute answers, which cuFuncSetAttribute does not change.
struct FunctionOnDevice {
  static constexpr u32 kAttributes = 16;                          // CU_FUNC_ATTRIBUTE_MAX
  static constexpr i32 kUnknown = static_cast<i32>(0x8000'0000);  // where the host's driver gave none
  std::atomic<i32> attributes[kAttributes];
  std::atomic<i32> kernel_attributes[kAttributes];
  std::atomic<u32> overridden{0};  // bit a: attribute a was set through cuFuncSetAttribute
};

struct Function;

// What look-ups of functions in one module or library know (manual/look_up.cpp). Guarded by its mutex.
// A loaded module never gains or loses functions, so nothing here can become wrong while it lives.
struct LookUps {
  u64 next_ticket = 0;                    // the one after the newest look-up that waited; 0: none yet
  bool asked = false;                     // for the names
  std::unordered_set<std::string> names;  // empty also where there are too many
  std::vector<Function*> pending;         // looked up without waiting, and not described since
};

// A CUfunction or CUkernel; a kernel stands for its function in every context too. Cached: what the client
// must know to launch without asking.
struct Function {
  wire::Handle handle;
  Context* context = nullptr;  // null for a CUkernel, which belongs to a library and works in every context
  struct Library* library = nullptr;
  Module* module = nullptr;
  std::string name;
  // Written before `described` is set, never afterwards.
  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0;  // size of the packed parameter buffer
  std::atomic<bool> described{false};
  // By CUdevice; null until asked for. Owned; they live as long as the function.
  std::array<std::atomic<FunctionOnDevice*>, wire::kMaxDevices> on_device{};
  std::atomic<bool> pending{false};  // in LookUps::pending of its module or library
  std::atomic<u32> epoch{0};         // counts attribute changes: cached occupancy answers end with it

  Function() = default;
  Function(const Function&) = delete;
  Function& operator=(const Function&) = delete;
  ~Function() {
    for (std::atomic<FunctionOnDevice*>& entry : on_device) delete entry.load();
  }
};

// A module variable's place.
struct Global {
  u64 address = 0;
  u64 bytes = 0;
};

struct Module {
  wire::Handle handle;
  Context* context = nullptr;
  Library* library = nullptr;  // when it is a library's module (cuLibraryGetModule)
  std::mutex mutex;            // guards the maps
  std::unordered_map<std::string, Function*> functions;
  LookUps look_ups;
  std::unordered_map<std::string, Global> globals;
};

struct Library {
  wire::Handle handle;
  std::mutex mutex;  // guards the maps
  std::unordered_map<std::string, Function*> kernels;
  LookUps look_ups;
  std::map<std::pair<u64, std::string>, Global> globals;  // by Context::id and name
  std::map<u64, Module*> modules;                         // by Context::id
};

struct ContextDetails;  // what only manual/context*.cpp needs

struct Context {
  u32 index = 0;  // wire::Handle index of HandleKind::context; slots carry it
  wire::Handle handle;
  int device = 0;  // CUdevice as the program counts (CUDA_VISIBLE_DEVICES applied); see manual/device.hpp
  bool primary = false;
  bool green = false;
  // Whose modules, memory and events are used while this one is current: itself, but for a green context the
  // device's primary context. Itself again once a green context is destroyed.
  Context* owner = this;
  std::atomic<u32> flags{0};
  // False once destroyed, and for a primary context while nobody retains it. The object outlives that: it may
  // still be current in threads, which then get CONTEXT_IS_DESTROYED.
  std::atomic<bool> alive{true};
  std::atomic<u32> uses{0};  // places on threads' stacks that hold it
  u32 api_version = 3020;
  u64 id = 0;  // cuCtxGetId; never used twice, a primary context gets a new one each time it comes alive
  std::shared_ptr<ContextDetails> details;
  Stream* legacy = nullptr;      // CU_STREAM_LEGACY of this context
  std::mutex mutex;              // guards `streams`
  std::vector<Stream*> streams;  // all live streams, the implicit ones too
  // Completion words and last values of destroyed streams: cuCtxSynchronize waits for their work as well.
  // Guarded by `mutex`; those that are done leave when others come.
  std::vector<std::pair<u32, u64>> leaving;
};

// One slab a type. Defined in objects.cpp.
extern Slab<Context> g_contexts;
extern Slab<Stream> g_streams;
extern Slab<Event> g_events;
extern Slab<Function> g_functions;
extern Slab<Module> g_modules;
extern Slab<Library> g_libraries;

// Null when `handle` is not a live object of that type.
inline Context* find(CUcontext handle) {
  return g_contexts.find(handle);
}
inline Event* find(CUevent handle) {
  return g_events.find(handle);
}
inline Function* find(CUfunction handle) {
  return g_functions.find(handle);
}
inline Function* find(CUkernel handle) {
  return g_functions.find(handle);
}
inline Module* find(CUmodule handle) {
  return g_modules.find(handle);
}
inline Library* find(CUlibrary handle) {
  return g_libraries.find(handle);
}
// Streams go through resolve_stream() in thread_state.hpp, which knows 0, CU_STREAM_LEGACY and _PER_THREAD.

// Hands out wire handles for objects that the client names itself. Thread-safe.
class HandleAllocator {
 public:
  explicit HandleAllocator(wire::HandleKind kind, u32 limit) : kind_(kind), limit_(limit) {}
  // An unused handle, or a null handle when `limit` objects are alive; the worker is told of that once.
  wire::Handle take();
  // What the host allows (its [limits]). Before the first handle.
  void lower_limit(u32 limit) { limit_ = limit < limit_ ? limit : limit_; }
  void give_back(wire::Handle handle);

 private:
  std::mutex mutex_;
  wire::HandleKind kind_;
  u32 limit_;
  u32 next_ = 1;
  std::deque<wire::Handle> free_;
  bool told_ = false;
};

// The allocator of one kind; lives for the process.
HandleAllocator& handles(wire::HandleKind kind);

// Guards Stream::capture and Event::capture. Captures are rare: one lock for all of them.
std::mutex& capture_mutex();

}  // namespace gpupool::guest
