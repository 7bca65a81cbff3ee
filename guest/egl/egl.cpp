// EGL's functions, as GLVND's libEGL.so.1 calls them for our display, and the entrance __egl_Main.
#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "gl_client.hpp"
#include "guest/egl/egl_calls.hpp"
#include "guest/runtime/log.hpp"

namespace gpupool::guest {
namespace {

using namespace gpupool::egl;
using namespace gpupool::gl;

// The handle of the one device: an address that is nothing else.
u8 g_device;

EGLDisplay get_platform_display(EGLenum platform, void* native, const EGLAttrib* attributes) {
  (void)attributes;  // what platforms define of them does not concern us
  const bool headless = (platform == EGL_PLATFORM_DEVICE_EXT && native == &g_device) ||
                        (platform == EGL_PLATFORM_SURFACELESS_MESA && native == nullptr) ||
                        (platform == EGL_NONE && native == nullptr);
  const bool x11 = platform == EGL_PLATFORM_X11_KHR && windows_wanted();
  if (!headless && !x11) {
    fail(EGL_BAD_PARAMETER);
    return nullptr;
  }
  succeed();
  return Display::only().screen(x11 ? native : nullptr, x11);
}

EGLBoolean supports_api(EGLenum api) {
  return api == EGL_OPENGL_API || api == EGL_OPENGL_ES_API;
}

const std::string& platforms() {
  // Never destroyed: programs call us from their exit handlers.
  static const auto& found =
      *new std::string(windows_wanted() ? "EGL_EXT_platform_device EGL_MESA_platform_surfaceless "
                                          "EGL_KHR_platform_x11 EGL_EXT_platform_x11"
                                        : "EGL_EXT_platform_device EGL_MESA_platform_surfaceless");
  return found;
}

const char* vendor_string(int name) {
  return name == kPlatformExtensions ? platforms().c_str() : nullptr;
}

EGLint get_error() {
  return std::exchange(thread_egl().error, EGL_SUCCESS);
}

EGLBoolean initialize(EGLDisplay display, EGLint* major, EGLint* minor) {
  Screen* const screen = Display::only().known(display);
  if (screen == nullptr) return fail(EGL_BAD_DISPLAY);
  if (!Display::only().initialize(*screen)) return fail(EGL_NOT_INITIALIZED);
  if (major != nullptr) *major = 1;
  if (minor != nullptr) *minor = 5;
  return succeed();
}

EGLBoolean terminate(EGLDisplay display) {
  Screen* const screen = Display::only().known(display);
  if (screen == nullptr) return fail(EGL_BAD_DISPLAY);
  Display::only().terminate(*screen);
  return succeed();
}

const char* query_string(EGLDisplay display, EGLint name) {
  // libEGL asks each vendor without a display, too, and shows of it what it knows itself.
  if (display == nullptr && static_cast<u32>(name) == EGL_EXTENSIONS) {
    static const auto& extensions = *new std::string(
        "EGL_EXT_client_extensions EGL_EXT_device_base EGL_EXT_device_enumeration EGL_EXT_device_query "
        "EGL_EXT_platform_base " +
        platforms());
    return extensions.c_str();
  }
  if (ready(display) == nullptr) return nullptr;
  succeed();
  switch (static_cast<u32>(name)) {
    case EGL_VENDOR:
      return "gpupool";
    case EGL_VERSION:
      return "1.5 gpupool";
    case EGL_CLIENT_APIS:
      return "OpenGL OpenGL_ES";
    case EGL_EXTENSIONS:
      return "EGL_KHR_create_context EGL_KHR_get_all_proc_addresses EGL_KHR_no_config_context "
             "EGL_KHR_surfaceless_context";
    default:
      fail(EGL_BAD_PARAMETER);
      return nullptr;
  }
}

u32 visual_of(const Screen& screen) {
  return screen.server == nullptr ? 0 : screen.server->visual();
}

EGLBoolean choose_config(EGLDisplay display, const EGLint* attributes, EGLConfig* chosen, EGLint room,
                         EGLint* count) {
  const Screen* const screen = ready(display);
  if (screen == nullptr) return 0;
  if (count == nullptr) return fail(EGL_BAD_PARAMETER);
  std::vector<const Config*> found;
  if (const i32 error = matching_configs(attributes, visual_of(*screen), found); error != EGL_SUCCESS)
    return fail(error);
  if (chosen == nullptr) room = static_cast<EGLint>(found.size());
  *count = std::min(room, static_cast<EGLint>(found.size()));
  for (EGLint i = 0; chosen != nullptr && i < *count; ++i)
    chosen[i] = reinterpret_cast<EGLConfig>(static_cast<u64>(found[static_cast<size_t>(i)]->id));
  return succeed();
}

EGLBoolean get_configs(EGLDisplay display, EGLConfig* out, EGLint room, EGLint* count) {
  static constexpr EGLint kAny[] = {EGL_NONE};
  return choose_config(display, kAny, out, room, count);
}

EGLBoolean get_config_attrib(EGLDisplay display, EGLConfig handle, EGLint attribute, EGLint* value) {
  const Screen* const screen = ready(display);
  if (screen == nullptr) return 0;
  const Config* const config = Display::only().config(handle);
  if (config == nullptr) return fail(EGL_BAD_CONFIG);
  if (value == nullptr) return fail(EGL_BAD_PARAMETER);
  return config_attribute(*config, visual_of(*screen), attribute, *value) ? succeed()
                                                                          : fail(EGL_BAD_ATTRIBUTE);
}

i32 read_context_attributes(const EGLint* attributes, wire::GlContextWish& wish) {
  for (; attributes != nullptr && *attributes != static_cast<EGLint>(EGL_NONE); attributes += 2) {
    const auto value = static_cast<u32>(attributes[1]);
    const auto flag = [&](u32 bit) { wish.flags = value != 0 ? wish.flags | bit : wish.flags & ~bit; };
    switch (static_cast<u32>(attributes[0])) {
      case EGL_CONTEXT_MAJOR_VERSION:
        wish.major = value;
        break;
      case EGL_CONTEXT_MINOR_VERSION:
        wish.minor = value;
        break;
      case EGL_CONTEXT_OPENGL_PROFILE_MASK:
        wish.profile = value;
        break;
      case EGL_CONTEXT_OPENGL_DEBUG:
        flag(wire::kGlDebug);
        break;
      case EGL_CONTEXT_OPENGL_FORWARD_COMPATIBLE:
        flag(wire::kGlForward);
        break;
      case EGL_CONTEXT_OPENGL_ROBUST_ACCESS:
        flag(wire::kGlRobust);
        break;
      case EGL_CONTEXT_FLAGS_KHR:
        wish.flags = value & (wire::kGlDebug | wire::kGlForward | wire::kGlRobust);  // the same bits
        break;
      case EGL_CONTEXT_OPENGL_RESET_NOTIFICATION_STRATEGY:
        break;  // a lost context says so either way
      default:
        return EGL_BAD_ATTRIBUTE;
    }
  }
  return EGL_SUCCESS;
}

EGLContext create_context(EGLDisplay display, EGLConfig config, EGLContext share, const EGLint* attributes) {
  if (ready(display) == nullptr) return nullptr;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  wire::GlContextWish wish;
  wish.api = thread_egl().api;
  wish.major = 1;
  wish.profile = EGL_CONTEXT_OPENGL_CORE_PROFILE_BIT;
  ContextEntry* made = nullptr;
  i32 error = read_context_attributes(attributes, wish);
  const Config* const its = only.config(config);
  if (error == EGL_SUCCESS && config != nullptr && its == nullptr) error = EGL_BAD_CONFIG;
  if (error == EGL_SUCCESS && share != nullptr) {
    const ContextEntry* const other = only.context(share);
    if (other == nullptr) error = EGL_BAD_CONTEXT;
    wish.share = other == nullptr ? 0 : other->context->index();
  }
  const bool core = wish.profile == EGL_CONTEXT_OPENGL_CORE_PROFILE_BIT &&
                    (wish.major > 3 || (wish.major == 3 && wish.minor >= 1));
  if (error == EGL_SUCCESS && wish.api == EGL_OPENGL_API && !core) {
    log_line(
        "this OpenGL has the core profile only: a context of version %u.%u, or a compatibility profile, "
        "cannot be had (docs/opengl.md)",
        wish.major, wish.minor);
    error = EGL_BAD_MATCH;
  }
  if (error == EGL_SUCCESS && wish.api == EGL_OPENGL_ES_API && wish.major < 2) error = EGL_BAD_MATCH;
  if (error == EGL_SUCCESS) error = only.create_context(wish, its, made);
  answer(error);
  return made;
}

EGLBoolean destroy_context(EGLDisplay display, EGLContext handle) {
  if (ready(display) == nullptr) return 0;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  ContextEntry* const entry = only.context(handle);
  if (entry == nullptr) return fail(EGL_BAD_CONTEXT);
  only.destroy(*entry);
  return succeed();
}

EGLBoolean make_current(EGLDisplay display, EGLSurface draw, EGLSurface read, EGLContext handle) {
  if (Display::only().known(display) == nullptr) return fail(EGL_BAD_DISPLAY);
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  if (handle == nullptr) {
    if (draw != nullptr || read != nullptr) return fail(EGL_BAD_MATCH);
    return answer(only.make_current(nullptr, nullptr, nullptr));
  }
  if (!only.is_open()) return fail(EGL_NOT_INITIALIZED);
  ContextEntry* const entry = only.context(handle);
  if (entry == nullptr) return fail(EGL_BAD_CONTEXT);
  Surface* const drawn = draw == nullptr ? nullptr : only.surface(draw);
  Surface* const read_from = read == nullptr ? nullptr : only.surface(read);
  if ((draw != nullptr && drawn == nullptr) || (read != nullptr && read_from == nullptr))
    return fail(EGL_BAD_SURFACE);
  if ((drawn == nullptr) != (read_from == nullptr)) return fail(EGL_BAD_MATCH);
  return answer(only.make_current(entry, drawn, read_from));
}

EGLBoolean query_context(EGLDisplay display, EGLContext handle, EGLint attribute, EGLint* value) {
  if (ready(display) == nullptr) return 0;
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  const ContextEntry* const entry = only.context(handle);
  if (entry == nullptr) return fail(EGL_BAD_CONTEXT);
  if (value == nullptr) return fail(EGL_BAD_PARAMETER);
  switch (static_cast<u32>(attribute)) {
    case EGL_CONFIG_ID:
      *value = entry->config == nullptr ? 0 : entry->config->id;
      return succeed();
    case EGL_CONTEXT_CLIENT_TYPE:
      *value = static_cast<EGLint>(entry->api);
      return succeed();
    case EGL_CONTEXT_CLIENT_VERSION:
      *value = entry->major;
      return succeed();
    case EGL_RENDER_BUFFER:
      *value = entry->draw == nullptr ? EGL_NONE : EGL_BACK_BUFFER;
      return succeed();
    default:
      return fail(EGL_BAD_ATTRIBUTE);
  }
}

EGLBoolean wait_client() {
  if (t_context != nullptr) gl_api::glFinish();
  return succeed();
}
EGLBoolean wait_native(EGLint) {
  return succeed();
}

EGLBoolean bind_api(EGLenum api) {
  if (supports_api(api) == 0) return fail(EGL_BAD_PARAMETER);
  thread_egl().api = api;
  return succeed();
}

EGLBoolean release_thread() {
  Display& only = Display::only();
  const std::lock_guard lock(only.mutex);
  only.make_current(nullptr, nullptr, nullptr);
  thread_egl() = ThreadEgl{};
  return 1;
}

EGLBoolean query_devices(EGLint room, EGLDevice* devices, EGLint* count) {
  if (count == nullptr || (devices != nullptr && room <= 0)) return fail(EGL_BAD_PARAMETER);
  *count = 1;
  if (devices != nullptr) devices[0] = &g_device;
  return succeed();
}
EGLBoolean query_device_attrib(EGLDevice device, EGLint attribute, EGLAttrib* value) {
  if (device != &g_device) return fail(EGL_BAD_DEVICE_EXT);
  if (value != nullptr && static_cast<u32>(attribute) == EGL_CUDA_DEVICE_NV) {
    *value = 0;  // the session's first vGPU
    return succeed();
  }
  return fail(EGL_BAD_ATTRIBUTE);
}
const char* query_device_string(EGLDevice device, EGLint name) {
  if (device == &g_device && static_cast<u32>(name) == EGL_EXTENSIONS) {
    succeed();
    return "EGL_NV_device_cuda";
  }
  fail(device == &g_device ? EGL_BAD_PARAMETER : EGL_BAD_DEVICE_EXT);
  return nullptr;
}
EGLBoolean query_display_attrib(EGLDisplay display, EGLint attribute, EGLAttrib* value) {
  if (Display::only().known(display) == nullptr) return fail(EGL_BAD_DISPLAY);
  if (value == nullptr || static_cast<u32>(attribute) != EGL_DEVICE_EXT) return fail(EGL_BAD_ATTRIBUTE);
  *value = reinterpret_cast<EGLAttrib>(&g_device);
  return succeed();
}

struct Named {
  const char* name;
  Function function;
};
template <typename F>
Function as_function(F* function) {
  return reinterpret_cast<Function>(function);
}

void* get_proc_address(const char* name) {
  static const Named kFunctions[] = {
      {"eglBindAPI", as_function(bind_api)},
      {"eglBindTexImage", as_function(no_image)},
      {"eglChooseConfig", as_function(choose_config)},
      {"eglCopyBuffers", as_function(copy_buffers)},
      {"eglCreateContext", as_function(create_context)},
      {"eglCreatePbufferFromClientBuffer", as_function(no_client_buffer)},
      {"eglCreatePbufferSurface", as_function(create_pbuffer)},
      {"eglCreatePixmapSurface", as_function(no_pixmap)},
      {"eglCreatePlatformPixmapSurface", as_function(no_platform_pixmap)},
      {"eglCreatePlatformWindowSurface", as_function(create_platform_window)},
      {"eglCreatePlatformWindowSurfaceEXT", as_function(create_platform_window_ext)},
      {"eglCreateWindowSurface", as_function(create_window)},
      {"eglDestroyContext", as_function(destroy_context)},
      {"eglDestroySurface", as_function(destroy_surface)},
      {"eglGetConfigAttrib", as_function(get_config_attrib)},
      {"eglGetConfigs", as_function(get_configs)},
      {"eglGetError", as_function(get_error)},
      {"eglInitialize", as_function(initialize)},
      {"eglMakeCurrent", as_function(make_current)},
      {"eglQueryContext", as_function(query_context)},
      {"eglQueryDeviceAttribEXT", as_function(query_device_attrib)},
      {"eglQueryDeviceStringEXT", as_function(query_device_string)},
      {"eglQueryDevicesEXT", as_function(query_devices)},
      {"eglQueryDisplayAttribEXT", as_function(query_display_attrib)},
      {"eglQueryString", as_function(query_string)},
      {"eglQuerySurface", as_function(query_surface)},
      {"eglReleaseTexImage", as_function(no_image)},
      {"eglReleaseThread", as_function(release_thread)},
      {"eglSurfaceAttrib", as_function(surface_attrib)},
      {"eglSwapBuffers", as_function(swap_buffers)},
      {"eglSwapInterval", as_function(swap_interval)},
      {"eglTerminate", as_function(terminate)},
      {"eglWaitClient", as_function(wait_client)},
      {"eglWaitGL", as_function(wait_client)},
      {"eglWaitNative", as_function(wait_native)},
  };
  for (const Named& each : kFunctions)
    if (std::strcmp(each.name, name) == 0) return reinterpret_cast<void*>(each.function);
  const auto entries = gl_api::kEntryPoints;
  const auto found = std::ranges::lower_bound(
      entries, name, [](const char* a, const char* b) { return std::strcmp(a, b) < 0; },
      &gl_api::NamedEntry::name);
  if (found == entries.end() || std::strcmp(found->name, name) != 0) return nullptr;
  return reinterpret_cast<void*>(found->entry);
}

// We have no functions of EGL that libEGL does not know.
void* get_dispatch_address(const char*) {
  return nullptr;
}
void set_dispatch_index(const char*, int) {}

}  // namespace

Screen* ready(EGLDisplay display) {
  Screen* const screen = Display::only().known(display);
  if (screen == nullptr || !screen->initialized || !Display::only().is_open()) {
    fail(screen == nullptr ? EGL_BAD_DISPLAY : EGL_NOT_INITIALIZED);
    return nullptr;
  }
  return screen;
}

}  // namespace gpupool::guest

// NOLINTNEXTLINE(readability-identifier-naming): what libEGL.so.1 looks for
extern "C" __attribute__((visibility("default"), used)) gpupool::egl::EGLBoolean __egl_Main(
    gpupool::u32 version, const void* exports, void* vendor, gpupool::egl::VendorInterface* ours) {
  using namespace gpupool::guest;
  (void)exports;
  (void)vendor;
  if (version >> 16 != gpupool::egl::kVendorAbiMajor) return 0;
  ours->get_platform_display = get_platform_display;
  ours->get_supports_api = supports_api;
  ours->get_vendor_string = vendor_string;
  ours->get_proc_address = get_proc_address;
  ours->get_dispatch_address = get_dispatch_address;
  ours->set_dispatch_index = set_dispatch_index;
  return 1;
}
