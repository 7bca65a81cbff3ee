// OpenGL of one session: EGL's display, contexts and surfaces by the client's indices.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>

#include "hostd/worker/opengl/command.hpp"
#include "hostd/worker/opengl/egl.hpp"
#include "hostd/worker/opengl/storage.hpp"

namespace gpupool::worker {

class GlServer {
 public:
  // Loads the host's OpenGL; false with `error`.
  bool open(const Worker& worker, std::string& error);
  // EGL's error, or EGL_SUCCESS.
  i32 create_context(const wire::GlContextWish& wish);
  void destroy_context(u32 index);
  i32 create_surface(const wire::GlSurfaceWish& wish);
  void destroy_surface(u32 index);
  i32 use_surfaces(u32 index, u32 draw, u32 read);
  // That context, current in the driver; null for an index without one.
  GlContext* use(u32 index);

 private:
  struct Surface {
    void* surface = nullptr;
    u64 charged = 0;
  };

  i32 make_current(u32 index);
  void* surface(u32 index, bool& found) const;

  EglApi egl_;
  GlApi api_;
  void* display_ = nullptr;
  bool loaded_ = false;
  u32 current_ = 0;
  std::map<u32, GlContext> contexts_;
  std::map<u32, Surface> surfaces_;
  std::unordered_map<u64, gl::GLsync> syncs_;
};

}  // namespace gpupool::worker
