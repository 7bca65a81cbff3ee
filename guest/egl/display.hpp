// What EGL knows in this process: one device and one display, configurations, contexts and surfaces. There
// are no windows: a surface is a pbuffer of the host's.
//
// Invariant: an EGLContext, EGLSurface or EGLConfig that a program hands back is looked up here before it is
// used.
#pragma once

#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>

#include "guest/egl/context.hpp"
#include "guest/egl/egl_types.hpp"

namespace gpupool::guest {

struct Config {
  i32 id = 0;
  i32 alpha = 0, depth = 0, stencil = 0, samples = 0;
};

struct Surface {
  u32 index = 0;
  i32 width = 0, height = 0;
  const Config* config = nullptr;
  u32 users = 0;  // contexts that have it current
  bool destroyed = false;
};

// An EGLContext.
struct ContextEntry {
  std::unique_ptr<Context> context;
  const Config* config = nullptr;
  u32 api = 0;
  i32 major = 0;
  bool current = false;
  Surface* draw = nullptr;
  Surface* read = nullptr;
};

// What this thread has.
struct ThreadEgl {
  i32 error = 0x3000;  // EGL_SUCCESS
  u32 api = 0x30a0;    // EGL_OPENGL_ES_API
  ContextEntry* current = nullptr;
};
ThreadEgl& thread_egl();

class Display {
 public:
  static Display& only();
  // Connects; false with one line on standard error.
  bool open();
  [[nodiscard]] bool is_open() const { return open_; }
  void close();

  const Config* config(egl::EGLConfig handle) const;
  Surface* surface(egl::EGLSurface handle);
  ContextEntry* context(egl::EGLContext handle);

  // EGL's error, or EGL_SUCCESS.
  i32 create_context(const wire::GlContextWish& wish, const Config* config, ContextEntry*& made);
  i32 create_surface(i32 width, i32 height, const Config& config, Surface*& made);
  void destroy(ContextEntry& context);
  void destroy(Surface& surface);
  i32 make_current(ContextEntry* context, Surface* draw, Surface* read);

  std::mutex mutex;  // guards everything here

 private:
  template <typename... Values>
  i32 manage(wire::GlManage what, bool wait, const Values&... values);
  u32 free_index();
  void release(ContextEntry& context);
  void forget(ContextEntry& context);
  void forget(Surface& surface);

  const PrivateTable* table_ = nullptr;
  bool open_ = false;
  u32 next_index_ = 1;
  std::vector<u32> free_;
  std::vector<u8> answer_;
  u32 answered_ = 0;
  std::unordered_map<void*, std::unique_ptr<ContextEntry>> contexts_;
  std::unordered_map<void*, std::unique_ptr<Surface>> surfaces_;
};

std::span<const Config> configs();
// False for an attribute that does not exist.
bool config_attribute(const Config& config, i32 attribute, i32& value);
// Those that have what eglChooseConfig was given, the most modest first; EGL's error, or EGL_SUCCESS.
i32 matching_configs(const i32* attributes, std::vector<const Config*>& found);

}  // namespace gpupool::guest
