// What EGL knows in this process: one device and its displays, configurations, contexts and surfaces. A
// surface is a pbuffer of the host's, also where it stands for a window of an X server.
//
// Invariant: an EGLContext, EGLSurface or EGLConfig that a program hands back is looked up here before it is
// used.
#pragma once

#include <array>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>

#include "guest/egl/context.hpp"
#include "guest/egl/egl_types.hpp"
#include "guest/egl/x_windows.hpp"

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
  // Of a window; 0 for a pbuffer.
  u32 window = 0;
  u32 drawing = 0;            // the X server's graphics context
  XServer* server = nullptr;  // lives as long as the process
};

// An EGLDisplay: the one without windows, or an X server's. They share everything else.
struct Screen {
  void* native = nullptr;  // Xlib's
  bool x11 = false;
  bool initialized = false;
  std::unique_ptr<XServer> server;
};

// Whether the user wants windows to be ours: GPUPOOL_OPENGL_WINDOWS. Else another vendor's library has them.
bool windows_wanted();

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

  // The display for that of a platform's, which is made when it is first asked for; they are never destroyed.
  Screen* screen(void* native, bool x11);
  // Null for a handle that is none of ours.
  Screen* known(egl::EGLDisplay handle);
  bool initialize(Screen& screen);
  void terminate(Screen& screen);

  const Config* config(egl::EGLConfig handle) const;
  Surface* surface(egl::EGLSurface handle);
  ContextEntry* context(egl::EGLContext handle);

  // EGL's error, or EGL_SUCCESS.
  i32 create_context(const wire::GlContextWish& wish, const Config* config, ContextEntry*& made);
  i32 create_surface(i32 width, i32 height, const Config& config, Surface*& made);
  i32 create_window(Screen& screen, u32 window, const Config& config, Surface*& made);
  // Shows what the current context has drawn into its window, and follows the window's size.
  i32 present(Surface& surface);
  void destroy(ContextEntry& context);
  void destroy(Surface& surface);
  i32 make_current(ContextEntry* context, Surface* draw, Surface* read);

  std::mutex mutex;  // guards everything here

 private:
  // The message gl_manage; EGL's error, or EGL_SUCCESS.
  template <typename... Values>
  i32 manage(wire::GlManage what, bool wait, const Values&... values) {
    std::array<u8, wire::kInlineBytes> payload{};
    u64 used = 0;
    const auto put = [&](const auto& value) {
      constexpr u64 kAlignment = sizeof value < 8 ? sizeof value : 8;  // as wire/cpp/reader.hpp reads it
      used = (used + kAlignment - 1) / kAlignment * kAlignment;
      std::memcpy(payload.data() + used, &value, sizeof value);
      used += sizeof value;
    };
    put(what);
    (put(values), ...);
    return exchange(payload.data(), static_cast<u32>(used), wait);
  }
  i32 exchange(const u8* payload, u32 bytes, bool wait);
  void close();
  i32 make_pbuffer(i32 width, i32 height, const Config& config, u32& index);
  void drop_pbuffer(u32 index);
  i32 resize(Surface& surface, i32 width, i32 height);
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
  std::vector<u8> picture_;
  std::mutex screens_mutex_;
  std::vector<std::unique_ptr<Screen>> screens_;
};

std::span<const Config> configs();
// False for an attribute that does not exist. `visual` is that of the display's windows; 0: it has none.
bool config_attribute(const Config& config, u32 visual, i32 attribute, i32& value);
// Those that have what eglChooseConfig was given, the most modest first; EGL's error, or EGL_SUCCESS.
i32 matching_configs(const i32* attributes, u32 visual, std::vector<const Config*>& found);

}  // namespace gpupool::guest
