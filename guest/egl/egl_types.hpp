// EGL's types and the interface between GLVND's libEGL.so.1 and a vendor's library. Layouts are facts of the
// registry (egl.xml) and of libglvnd's include/glvnd/libeglabi.h, ABI 0.1: later minor versions append.
#pragma once

#include "gl_enums.hpp"
#include "wire/cpp/gl_types.hpp"

namespace gpupool::egl {

using EGLBoolean = u32;
using EGLint = i32;
using EGLenum = u32;
using EGLAttrib = std::intptr_t;
using EGLDisplay = void*;
using EGLConfig = void*;
using EGLContext = void*;
using EGLSurface = void*;
using EGLDevice = void*;
using Function = void (*)();

// What a vendor's library fills in for libEGL: __EGLapiImports.
struct VendorInterface {
  EGLDisplay (*get_platform_display)(EGLenum platform, void* native, const EGLAttrib* attributes);
  EGLBoolean (*get_supports_api)(EGLenum api);
  const char* (*get_vendor_string)(int name);
  void* (*get_proc_address)(const char* name);
  void* (*get_dispatch_address)(const char* name);
  void (*set_dispatch_index)(const char* name, int index);
  // Optional from here on: rewriting GLVND's entry points, threads, finding platforms.
  void* is_patch_supported;
  void* initiate_patch;
  void* release_patch;
  void* patch_thread_attach;
  void* find_native_display_platform;
};
inline constexpr u32 kVendorAbiMajor = 0;
inline constexpr int kPlatformExtensions = 0;  // __EGL_VENDOR_STRING_PLATFORM_EXTENSIONS

}  // namespace gpupool::egl
