#include "hostd/worker/opengl/egl.hpp"

#include <dlfcn.h>

#include <array>
#include <cstring>

namespace gpupool::worker {
namespace {

using namespace gpupool::gl;

constexpr i32 kMostDevices = 64;

bool has_word(const char* words, const char* word) {
  if (words == nullptr) return false;
  const size_t length = std::strlen(word);
  for (const char* at = std::strstr(words, word); at != nullptr; at = std::strstr(at + 1, word))
    if ((at == words || at[-1] == ' ') && (at[length] == ' ' || at[length] == 0)) return true;
  return false;
}

}  // namespace

bool EglApi::load(std::string& error) {
  void* const library = dlopen("libEGL.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const said = dlerror();
    error = said == nullptr ? "libEGL.so.1 cannot be loaded" : said;
    return false;
  }
  const auto find = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    if (function == nullptr && get_proc_address != nullptr)
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(get_proc_address(name));
    if (function == nullptr) error = std::string("libEGL.so.1 has no ") + name;
  };
  find(get_proc_address, "eglGetProcAddress");
  find(get_error, "eglGetError");
  find(initialize, "eglInitialize");
  find(bind_api, "eglBindAPI");
  find(choose_config, "eglChooseConfig");
  find(create_context, "eglCreateContext");
  find(destroy_context, "eglDestroyContext");
  find(create_pbuffer, "eglCreatePbufferSurface");
  find(destroy_surface, "eglDestroySurface");
  find(make_current, "eglMakeCurrent");
  find(query_string, "eglQueryString");
  find(get_platform_display, "eglGetPlatformDisplayEXT");
  find(query_devices, "eglQueryDevicesEXT");
  find(query_device_string, "eglQueryDeviceStringEXT");
  find(query_device_attribute, "eglQueryDeviceAttribEXT");
  return error.empty();
}

void* open_display(const EglApi& egl, const Worker& worker, std::string& error) {
  std::array<void*, kMostDevices> devices{};
  i32 count = 0;
  if (egl.query_devices(kMostDevices, devices.data(), &count) == 0 || count == 0) {
    error = "the host's EGL finds no device";
    return nullptr;
  }
  // Our vGPU's device says which of CUDA's it is (EGL_NV_device_cuda). Mesa's own, which computes on the
  // processor, serves a host whose EGL knows no device of CUDA's: that of the software GPU.
  void* chosen = nullptr;
  void* software = nullptr;
  bool cuda = false;
  for (i32 i = 0; i < count; ++i) {
    void* const device = devices[static_cast<size_t>(i)];
    EglAttribute ordinal = -1;
    const char* const words = egl.query_device_string(device, EGL_EXTENSIONS);
    if (has_word(words, "EGL_MESA_device_software")) software = device;
    if (!has_word(words, "EGL_NV_device_cuda") ||
        egl.query_device_attribute(device, EGL_CUDA_DEVICE_NV, &ordinal) == 0)
      continue;
    cuda = true;
    if (!worker.devices.empty() && ordinal == worker.devices.front()) chosen = device;
  }
  if (chosen == nullptr && !cuda) chosen = software;
  if (chosen == nullptr) {
    error = "the host's EGL has no device that is this vGPU's";
    return nullptr;
  }
  void* const display = egl.get_platform_display(EGL_PLATFORM_DEVICE_EXT, chosen, nullptr);
  i32 major = 0;
  i32 minor = 0;
  if (display == nullptr || egl.initialize(display, &major, &minor) == 0) {
    error = "the host's EGL does not initialise: error " + std::to_string(egl.get_error());
    return nullptr;
  }
  if (!has_word(egl.query_string(display, EGL_EXTENSIONS), "EGL_KHR_surfaceless_context") ||
      !has_word(egl.query_string(display, EGL_EXTENSIONS), "EGL_KHR_no_config_context")) {
    error = "the host's EGL lacks EGL_KHR_surfaceless_context or EGL_KHR_no_config_context";
    return nullptr;
  }
  return display;
}

}  // namespace gpupool::worker
