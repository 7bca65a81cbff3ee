// OpenGL of one session: EGL's display, contexts and surfaces by the client's indices.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "hostd/worker/drawing.hpp"
#include "hostd/worker/opengl/command.hpp"
#include "hostd/worker/opengl/egl.hpp"
#include "hostd/worker/opengl/storage.hpp"

namespace gpupool::worker {

class GlServer : public Drawing {
 public:
  // Loads the host's OpenGL; false with `error`.
  bool open(Worker& worker, std::string& error);
  // EGL's error, or EGL_SUCCESS.
  i32 create_context(const wire::GlContextWish& wish);
  void destroy_context(u32 index);
  i32 create_surface(const wire::GlSurfaceWish& wish);
  void destroy_surface(u32 index);
  i32 use_surfaces(u32 index, u32 draw, u32 read);
  // That context, current in the driver; null for an index without one.
  GlContext* use(u32 index);
  // Has the GPU begin with what there is, once before the program waits again: more often would cost drivers
  // that begin a picture anew each time.
  void begin(const GlContext& context) {
    if (!std::exchange(begun_, true)) context.api.glFlush();
  }
  void ends_waiting() { begun_ = false; }
  // It is about to get work.
  void draws(GlContext& context) { context.drew = drew_ = true; }

  // Whether the driver would make this thread wait for the GPU, and with it the session's other threads.
  static bool waits_for_gpu(wire::CommandHead head, std::span<const u8> bytes);
  // Whether it may: nobody is held up, as far as one can see, and it should not be for long.
  [[nodiscard]] bool may_wait(const Request& request) const;
  // A batch's last command, by the driver's own waiting.
  void wait_in_driver(GlContext& context, Request& request, wire::CommandHead head,
                      std::span<const u8> bytes);
  // Keeps a batch's last command until the GPU has done what came before it; false where that cannot be
  // known.
  bool hold_answer(GlContext& context, const Request& request, wire::CommandHead head,
                   std::span<const u8> bytes);

  [[nodiscard]] bool has_work() const override { return drew_; }
  u64 fence() override;
  bool passed(u64 fence) override;
  bool resume(Request& request, u64 until_ns) override;

 private:
  struct Surface {
    void* surface = nullptr;
    u64 charged = 0;
  };
  struct Fence {
    u64 number = 0;
    u32 context = 0;
    gl::GLsync sync = nullptr;
  };
  // At most one a context: its thread waits.
  struct Waiting {
    Request request;
    u32 context = 0;
    gl::GLsync sync = nullptr;
    u64 since_ns = 0;
    wire::CommandHead head;
    std::vector<u8> bytes;
  };

  i32 make_current(u32 index);
  gl::GLsync sync_behind();
  bool is_passed(u32 context, gl::GLsync sync, u64 wait_ns);
  void settle(u32 index);
  void* surface(u32 index, bool& found) const;

  Worker* worker_ = nullptr;
  EglApi egl_;
  GlApi api_;
  void* display_ = nullptr;
  bool loaded_ = false;
  u32 current_ = 0;
  std::map<u32, GlContext> contexts_;
  std::map<u32, Surface> surfaces_;
  std::unordered_map<u64, gl::GLsync> syncs_;
  bool drew_ = false;  // one of the contexts did
  u64 newest_fence_ = 0;
  std::deque<Fence> fences_;
  std::deque<Waiting> waiting_;
  u64 last_wait_ns_ = ~u64{0};  // how long the GPU was waited for, the last time
  bool said_ = false;
  bool begun_ = false;
};

// Executes a batch's last command, which may answer; the answer is in request.out, or in the window.
void execute_last(Worker& worker, GlContext& context, Request& request, wire::CommandHead head,
                  std::span<const u8> bytes);

}  // namespace gpupool::worker
