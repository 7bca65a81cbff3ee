// EGL's functions for surfaces: pbuffers, and windows of an X server, whose pictures are read back from the
// pbuffer on the host that stands for them.
#include <algorithm>

#include "gl_client.hpp"
#include "guest/egl/egl_calls.hpp"

namespace gpupool::guest {

using namespace gpupool::egl;
using namespace gpupool::gl;

EGLSurface create_pbuffer(EGLDisplay display, EGLConfig config, const EGLint* attributes) {
  if (ready(display) == nullptr) return nullptr;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  const Config* const its = only.config(config);
  EGLint width = 0;
  EGLint height = 0;
  for (; attributes != nullptr && *attributes != static_cast<EGLint>(EGL_NONE); attributes += 2) {
    if (static_cast<u32>(attributes[0]) == EGL_WIDTH) width = attributes[1];
    if (static_cast<u32>(attributes[0]) == EGL_HEIGHT) height = attributes[1];
  }
  constexpr auto kMost = static_cast<EGLint>(wire::kMostSurfaceEdge);
  Surface* made = nullptr;
  if (its == nullptr)
    fail(EGL_BAD_CONFIG);
  else if (width < 0 || height < 0 || width > kMost || height > kMost)
    fail(EGL_BAD_PARAMETER);
  else
    answer(only.create_surface(std::max(width, 1), std::max(height, 1), *its, made));
  return made;
}

// Attributes: which of its buffers a program draws to, which is always the back buffer here.
EGLSurface create_window(EGLDisplay display, EGLConfig config, void* window, const EGLint*) {
  Screen* const screen = ready(display);
  if (screen == nullptr) return nullptr;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  const Config* const its = only.config(config);
  Surface* made = nullptr;
  if (its == nullptr)
    fail(EGL_BAD_CONFIG);
  else if (screen->server == nullptr)
    fail(EGL_BAD_NATIVE_WINDOW);
  else
    answer(only.create_window(*screen, static_cast<u32>(reinterpret_cast<u64>(window)), *its, made));
  return made;
}

// Here the window is pointed to (EGL_KHR_platform_x11); Xlib's windows are as long as a pointer.
EGLSurface create_platform_window(EGLDisplay display, EGLConfig config, void* window, const EGLAttrib*) {
  if (window == nullptr) {
    fail(EGL_BAD_NATIVE_WINDOW);
    return nullptr;
  }
  return create_window(display, config, *static_cast<void**>(window), nullptr);
}
EGLSurface create_platform_window_ext(EGLDisplay display, EGLConfig config, void* window, const EGLint*) {
  return create_platform_window(display, config, window, nullptr);
}

EGLSurface no_pixmap(EGLDisplay display, EGLConfig, void*, const EGLint*) {
  if (ready(display) != nullptr) fail(EGL_BAD_NATIVE_PIXMAP);
  return nullptr;
}
EGLSurface no_platform_pixmap(EGLDisplay display, EGLConfig config, void* pixmap, const EGLAttrib*) {
  return no_pixmap(display, config, pixmap, nullptr);
}

EGLBoolean destroy_surface(EGLDisplay display, EGLSurface handle) {
  if (ready(display) == nullptr) return 0;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  Surface* const surface = only.surface(handle);
  if (surface == nullptr) return fail(EGL_BAD_SURFACE);
  only.destroy(*surface);
  return succeed();
}

EGLBoolean query_surface(EGLDisplay display, EGLSurface handle, EGLint attribute, EGLint* value) {
  if (ready(display) == nullptr) return 0;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  const Surface* const surface = only.surface(handle);
  if (surface == nullptr) return fail(EGL_BAD_SURFACE);
  if (value == nullptr) return fail(EGL_BAD_PARAMETER);
  switch (static_cast<u32>(attribute)) {
    case EGL_WIDTH:
      *value = surface->width;
      return succeed();
    case EGL_HEIGHT:
      *value = surface->height;
      return succeed();
    case EGL_CONFIG_ID:
      *value = surface->config->id;
      return succeed();
    case EGL_RENDER_BUFFER:
      *value = EGL_BACK_BUFFER;
      return succeed();
    case EGL_SWAP_BEHAVIOR:
      *value = EGL_BUFFER_PRESERVED;
      return succeed();
    default:
      return fail(EGL_BAD_ATTRIBUTE);
  }
}

// A pbuffer has nothing to show; swapping only says that what was drawn should be drawn.
EGLBoolean swap_buffers(EGLDisplay display, EGLSurface handle) {
  if (ready(display) == nullptr) return 0;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  Surface* const surface = only.surface(handle);
  if (surface == nullptr) return fail(EGL_BAD_SURFACE);
  if (surface->window != 0) return answer(only.present(*surface));
  if (t_context != nullptr) t_context->flush();
  return succeed();
}

EGLBoolean swap_interval(EGLDisplay display, EGLint) {
  return ready(display) != nullptr ? succeed() : 0;
}
EGLBoolean no_image(EGLDisplay display, EGLSurface, EGLint) {
  return ready(display) != nullptr ? fail(EGL_BAD_MATCH) : 0;
}
EGLBoolean surface_attrib(EGLDisplay display, EGLSurface, EGLint, EGLint) {
  return ready(display) != nullptr ? fail(EGL_BAD_ATTRIBUTE) : 0;
}
EGLSurface no_client_buffer(EGLDisplay display, EGLenum, void*, EGLConfig, const EGLint*) {
  if (ready(display) != nullptr) fail(EGL_BAD_PARAMETER);
  return nullptr;
}
EGLBoolean copy_buffers(EGLDisplay display, EGLSurface, void*) {
  return ready(display) != nullptr ? fail(EGL_BAD_NATIVE_PIXMAP) : 0;
}

}  // namespace gpupool::guest
