// Windows: surfaces of the host's that are as large as a window, and whose picture is put into it.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "gl_client.hpp"
#include "guest/egl/display.hpp"
#include "guest/runtime/log.hpp"

namespace gpupool::guest {
namespace {
using namespace gpupool::gl;

i32 edge(i32 length) {
  return std::clamp(length, 1, static_cast<i32>(wire::kMostSurfaceEdge));
}

// OpenGL's picture begins at the bottom and is red, green, blue, alpha.
void turn(const u8* from, i32 width, i32 height, std::vector<u8>& picture) {
  const u64 row = static_cast<u64>(width) * 4;
  picture.resize(row * static_cast<u64>(height));
  for (i32 y = 0; y < height; ++y) {
    const u8* in = from + static_cast<u64>(height - 1 - y) * row;
    u8* out = picture.data() + static_cast<u64>(y) * row;
    for (i32 x = 0; x < width; ++x, in += 4, out += 4) {
      out[0] = in[2];
      out[1] = in[1];
      out[2] = in[0];
      out[3] = in[3];
    }
  }
}

// The picture of the current context's own framebuffer, whatever the program reads from otherwise. The
// worker packs tightly, so the program's pixel storage does not matter.
bool read_picture(Context& context, i32 width, i32 height, std::vector<u8>& picture) {
  GLint frame = 0;
  GLint buffer = GL_BACK;
  gl_api::glGetIntegerv(GL_READ_FRAMEBUFFER_BINDING, &frame);
  if (frame != 0) gl_api::glBindFramebuffer(GL_READ_FRAMEBUFFER, 0);
  gl_api::glGetIntegerv(GL_READ_BUFFER, &buffer);
  if (buffer != static_cast<GLint>(GL_BACK)) gl_api::glReadBuffer(GL_BACK);
  const GLuint pack = context.pack_buffer;
  if (pack != 0) gl_api::glBindBuffer(GL_PIXEL_PACK_BUFFER, 0);
  auto* const a = context.begin<wire::gl_args::ReadPixels>(wire::GlFunction::glReadPixels);
  *a = {};
  a->width = width;
  a->height = height;
  a->format = GL_RGBA;
  a->type = GL_UNSIGNED_BYTE;
  bool came = false;
  const u64 bytes = static_cast<u64>(width) * static_cast<u64>(height) * 4;
  context.ask_large(bytes, [&](const u8* from, u64 size) {
    came = size == bytes;
    if (came) turn(from, width, height, picture);
  });
  if (pack != 0) gl_api::glBindBuffer(GL_PIXEL_PACK_BUFFER, pack);
  if (buffer != static_cast<GLint>(GL_BACK)) gl_api::glReadBuffer(static_cast<GLenum>(buffer));
  if (frame != 0) gl_api::glBindFramebuffer(GL_READ_FRAMEBUFFER, static_cast<GLuint>(frame));
  return came;
}

}  // namespace

bool windows_wanted() {
  static const bool wanted = [] {
    const char* const said = std::getenv("GPUPOOL_OPENGL_WINDOWS");
    return said != nullptr && std::strcmp(said, "1") == 0;
  }();
  return wanted;
}

Screen* Display::screen(void* native, bool x11) {
  const std::lock_guard lock(screens_mutex_);
  for (const auto& each : screens_)
    if (each->x11 == x11 && each->native == native) return each.get();
  screens_.push_back(std::make_unique<Screen>(Screen{native, x11, false, nullptr}));
  return screens_.back().get();
}

Screen* Display::known(egl::EGLDisplay handle) {
  const std::lock_guard lock(screens_mutex_);
  for (const auto& each : screens_)
    if (each.get() == handle) return each.get();
  return nullptr;
}

bool Display::initialize(Screen& screen) {
  if (!open()) return false;
  const std::lock_guard lock(mutex);
  if (screen.x11 && screen.server == nullptr) {
    std::string why;
    screen.server = XServer::connect(screen.native, why);
    if (screen.server == nullptr) {
      log_line("OpenGL cannot draw into windows: %s", why.c_str());
      return false;
    }
  }
  screen.initialized = true;
  return true;
}

void Display::terminate(Screen& screen) {
  if (!std::exchange(screen.initialized, false)) return;
  const std::lock_guard lock(screens_mutex_);
  // Contexts and surfaces are the process's: they go with the last of its displays.
  if (std::ranges::any_of(screens_, [](const auto& each) { return each->initialized; })) return;
  close();
  // The program may close its display now and get another one at the same address.
  for (const auto& each : screens_) {
    const auto uses = [&](const auto& entry) { return entry.second->server == each->server.get(); };
    if (std::ranges::none_of(surfaces_, uses)) each->server.reset();
  }
}

i32 Display::create_window(Screen& screen, u32 window, const Config& its_config, Surface*& made) {
  screen.server->settle();
  XWindow found;
  if (!screen.server->look_at(window, found)) return EGL_BAD_NATIVE_WINDOW;
  for (const auto& [handle, each] : surfaces_)
    if (each->window == window && each->server == screen.server.get()) return EGL_BAD_ALLOC;
  if (const i32 error = create_surface(edge(found.width), edge(found.height), its_config, made);
      error != EGL_SUCCESS)
    return error;
  made->server = screen.server.get();
  made->window = window;
  made->drawing = screen.server->begin_drawing(window);
  return EGL_SUCCESS;
}

// Another surface of the host's takes the place of the one that the window has outgrown.
i32 Display::resize(Surface& surface, i32 width, i32 height) {
  ContextEntry& entry = *thread_egl().current;
  u32 index = 0;
  if (const i32 error = make_pbuffer(width, height, *surface.config, index); error != EGL_SUCCESS)
    return error;
  const u32 read = entry.read == &surface ? index : entry.read->index;
  const u32 context = entry.context->index();
  if (const i32 error = manage(wire::GlManage::use_surfaces, true, context, index, read);
      error != EGL_SUCCESS) {
    drop_pbuffer(index);
    return error;
  }
  drop_pbuffer(surface.index);
  surface.index = index;
  surface.width = width;
  surface.height = height;
  return EGL_SUCCESS;
}

i32 Display::present(Surface& surface) {
  ContextEntry* const entry = thread_egl().current;
  if (entry == nullptr || entry->draw != &surface) return EGL_BAD_SURFACE;
  Context& context = *entry->context;
  const auto use = [&](u32 read) {
    return manage(wire::GlManage::use_surfaces, true, context.index(), surface.index, read);
  };
  const bool elsewhere = entry->read != &surface;
  if (elsewhere) {
    context.flush();
    if (const i32 error = use(surface.index); error != EGL_SUCCESS) return error;
  }
  const bool came = read_picture(context, surface.width, surface.height, picture_);
  context.flush();
  if (elsewhere) use(entry->read->index);
  if (!came) return EGL_CONTEXT_LOST;
  XWindow now;
  if (!surface.server->look_at(surface.window, now)) return EGL_BAD_NATIVE_WINDOW;
  surface.server->put(surface.window, surface.drawing, now.depth, surface.width, surface.height,
                      picture_.data());
  if (edge(now.width) == surface.width && edge(now.height) == surface.height) return EGL_SUCCESS;
  return resize(surface, edge(now.width), edge(now.height));
}

}  // namespace gpupool::guest
