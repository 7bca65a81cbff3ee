#include "hostd/renderer/library.hpp"

#include <dlfcn.h>

namespace gpupool::renderer {

bool VirglLibrary::load(std::string& error) {
  void* handle = dlopen("libvirglrenderer.so.1", RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    error = "the host has no libvirglrenderer.so.1 (Debian, Ubuntu: apt install libvirglrenderer1)";
    return false;
  }
#define GPUPOOL_LOOK_UP(one)                                  \
  one = reinterpret_cast<decltype(one)>(dlsym(handle, #one)); \
  if (one == nullptr) {                                       \
    error = "the host's libvirglrenderer.so.1 lacks " #one;   \
    return false;                                             \
  }
  GPUPOOL_VIRGL_FUNCTIONS(GPUPOOL_LOOK_UP)
#undef GPUPOOL_LOOK_UP
  virgl_set_debug_callback =
      reinterpret_cast<decltype(virgl_set_debug_callback)>(dlsym(handle, "virgl_set_debug_callback"));
  return true;
}

}  // namespace gpupool::renderer
