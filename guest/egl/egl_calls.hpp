// What the files of EGL's functions share: how a call answers, and its functions for surfaces.
#pragma once

#include "guest/egl/display.hpp"

namespace gpupool::guest {

// Sets EGL's error; 0, as EGL's functions answer then.
inline egl::EGLBoolean fail(i32 error) {
  thread_egl().error = error;
  return 0;
}
inline egl::EGLBoolean succeed() {
  thread_egl().error = 0x3000;  // EGL_SUCCESS
  return 1;
}
inline egl::EGLBoolean answer(i32 error) {
  return error == 0x3000 ? succeed() : fail(error);
}

// The display, if it is ours and initialised; else EGL's error is set.
Screen* ready(egl::EGLDisplay display);

egl::EGLSurface create_pbuffer(egl::EGLDisplay display, egl::EGLConfig config, const egl::EGLint* attributes);
egl::EGLSurface create_window(egl::EGLDisplay display, egl::EGLConfig config, void* window,
                              const egl::EGLint* attributes);
egl::EGLSurface create_platform_window(egl::EGLDisplay display, egl::EGLConfig config, void* window,
                                       const egl::EGLAttrib* attributes);
egl::EGLSurface create_platform_window_ext(egl::EGLDisplay display, egl::EGLConfig config, void* window,
                                           const egl::EGLint* attributes);
egl::EGLSurface no_pixmap(egl::EGLDisplay display, egl::EGLConfig config, void* pixmap,
                          const egl::EGLint* attributes);
egl::EGLSurface no_platform_pixmap(egl::EGLDisplay display, egl::EGLConfig config, void* pixmap,
                                   const egl::EGLAttrib* attributes);
egl::EGLBoolean destroy_surface(egl::EGLDisplay display, egl::EGLSurface handle);
egl::EGLBoolean query_surface(egl::EGLDisplay display, egl::EGLSurface handle, egl::EGLint attribute,
                              egl::EGLint* value);
egl::EGLBoolean surface_attrib(egl::EGLDisplay display, egl::EGLSurface handle, egl::EGLint attribute,
                               egl::EGLint value);
egl::EGLBoolean swap_buffers(egl::EGLDisplay display, egl::EGLSurface handle);
egl::EGLBoolean swap_interval(egl::EGLDisplay display, egl::EGLint interval);
egl::EGLBoolean copy_buffers(egl::EGLDisplay display, egl::EGLSurface handle, void* pixmap);
egl::EGLBoolean no_image(egl::EGLDisplay display, egl::EGLSurface handle, egl::EGLint buffer);
egl::EGLSurface no_client_buffer(egl::EGLDisplay display, egl::EGLenum type, void* buffer,
                                 egl::EGLConfig config, const egl::EGLint* attributes);

}  // namespace gpupool::guest
