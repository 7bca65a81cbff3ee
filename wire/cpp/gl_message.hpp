// OpenGL in the ring. A slot gl_batch carries many commands of one context, in the order of the calls; only
// the last may be one that the client waits for. The slot's payload is a BatchHead and then the commands,
// each a CommandHead, the command's arguments (generated: wire::gl_args) and the elements of its arrays,
// everything at multiples of 8 bytes. Images and the contents of buffers may lie beside that, in the slot's
// bulk piece.
#pragma once

#include "wire/cpp/gl_types.hpp"

namespace gpupool::wire {

struct BatchHead {
  u32 context = 0;
  u32 reserved = 0;
};

enum CommandFlag : u16 {
  kDataInBulk = 1 << 0,  // its array of content is the slot's bulk piece, and the batch has no other command
  kDataIsOffset = 1 << 1,  // an image command: `pixels` is an offset into a bound buffer
  kDataIsNull = 1 << 2,    // ... or null
  kAnswerRoom = 1 << 3,    // what it reads goes to the slot's bulk piece
};

struct CommandHead {
  u16 function = 0;  // wire::GlFunction
  u16 flags = 0;
  u32 bytes = 0;  // of the whole command
};
static_assert(sizeof(CommandHead) == 8 && sizeof(BatchHead) == 8);

inline constexpr u64 kNullArray = ~u64{0};        // as a count: the pointer was null
inline constexpr u32 kMostProbed = 448;           // elements that a question without a size may answer
inline constexpr u64 kMostGlData = 1ull << 31;    // bytes of one array
inline constexpr u32 kMostGlContexts = 1024;      // of one session, and so many surfaces
inline constexpr u64 kMostGlBatch = 64ull << 20;  // bytes of one batch

// glFenceSync: the client names the sync.
struct GlFence {
  u64 sync = 0;
  u32 condition = 0;
  u32 flags = 0;
};
inline constexpr u32 kMostGlSyncs = 1u << 16;  // of one session

// The message gl_manage: contexts and surfaces, which EGL makes.
enum class GlManage : u32 {
  open = 1,             // answers what the host's OpenGL is: GlHost
  create_context = 2,   // GlContextWish; answers EGL's error, and the facts of GlContextFacts as text
  destroy_context = 3,  // index; not answered
  create_surface = 4,   // GlSurfaceWish; answers EGL's error
  destroy_surface = 5,  // index; not answered
  use_surfaces = 6,     // index of a context, draw and read surface (0: none); answers EGL's error
  count_
};

struct GlContextWish {
  u32 index = 0;  // the client's choice, not in use
  u32 share = 0;  // index of the context whose objects it shares, or 0
  u32 api = 0;    // EGL_OPENGL_API or EGL_OPENGL_ES_API
  u32 major = 0, minor = 0;
  u32 profile = 0;  // EGL_CONTEXT_OPENGL_PROFILE_MASK
  u32 flags = 0;    // GlContextFlag
};
enum GlContextFlag : u32 { kGlDebug = 1 << 0, kGlForward = 1 << 1, kGlRobust = 1 << 2 };

struct GlSurfaceWish {
  u32 index = 0;
  u32 width = 0, height = 0;
  u32 alpha = 0, depth = 0, stencil = 0, samples = 0;
};
inline constexpr u32 kMostSurfaceEdge = 16384;

}  // namespace gpupool::wire
