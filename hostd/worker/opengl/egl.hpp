// The host's EGL, loaded when a client first asks for OpenGL: a program that never does pays nothing.
#pragma once

#include <string>

#include "gl_enums.hpp"  // generated
#include "hostd/worker/worker.hpp"
#include "wire/cpp/gl_types.hpp"

namespace gpupool::worker {

using EglFunction = void (*)();
using EglAttribute = std::intptr_t;

struct EglApi {
  EglFunction (*get_proc_address)(const char*) = nullptr;
  i32 (*get_error)() = nullptr;
  u32 (*initialize)(void* display, i32* major, i32* minor) = nullptr;
  u32 (*bind_api)(u32 api) = nullptr;
  u32 (*choose_config)(void* display, const i32* attributes, void** configs, i32 room, i32* count) = nullptr;
  void* (*create_context)(void* display, void* config, void* share, const i32* attributes) = nullptr;
  u32 (*destroy_context)(void* display, void* context) = nullptr;
  void* (*create_pbuffer)(void* display, void* config, const i32* attributes) = nullptr;
  u32 (*destroy_surface)(void* display, void* surface) = nullptr;
  u32 (*make_current)(void* display, void* draw, void* read, void* context) = nullptr;
  const char* (*query_string)(void* display, i32 name) = nullptr;
  void* (*get_platform_display)(u32 platform, void* native, const i32* attributes) = nullptr;
  u32 (*query_devices)(i32 room, void** devices, i32* count) = nullptr;
  const char* (*query_device_string)(void* device, i32 name) = nullptr;
  u32 (*query_device_attribute)(void* device, i32 name, EglAttribute* value) = nullptr;

  // False with `error`.
  bool load(std::string& error);
};

// The display of the device that is the session's first vGPU; Mesa's on a host without an NVIDIA GPU. Null
// with `error`.
void* open_display(const EglApi& egl, const Worker& worker, std::string& error);

}  // namespace gpupool::worker
