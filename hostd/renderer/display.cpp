#include "hostd/renderer/display.hpp"

#define EGL_NO_X11
#include <EGL/egl.h>
#include <EGL/eglext.h>
#include <dlfcn.h>

#include <cstring>

namespace gpupool::renderer {
namespace {

// EGL_EXT_device_persistent_id; build machines' headers may be older.
constexpr EGLint kDeviceUuid = 0x335C;
// EGL_NV_device_cuda: the ordinal of the CUDA device that is the same card.
constexpr EGLint kCudaDevice = 0x323A;
constexpr EGLint kMostDevices = 64;
constexpr size_t kUuidBytes = 16;

using QueryBinary = EGLBoolean (*)(EGLDeviceEXT, EGLint, EGLint, void*, EGLint*);

struct Egl {
  decltype(&eglGetProcAddress) get_proc_address = nullptr;
  decltype(&eglInitialize) initialize = nullptr;
  decltype(&eglBindAPI) bind_api = nullptr;
  decltype(&eglChooseConfig) choose_config = nullptr;
  decltype(&eglCreateContext) create_context = nullptr;
  decltype(&eglDestroyContext) destroy_context = nullptr;
  decltype(&eglMakeCurrent) make_current = nullptr;
  decltype(&eglGetCurrentContext) current_context = nullptr;
  decltype(&eglQueryString) query_string = nullptr;
  PFNEGLQUERYDEVICESEXTPROC query_devices = nullptr;
  PFNEGLQUERYDEVICESTRINGEXTPROC device_string = nullptr;
  PFNEGLQUERYDEVICEATTRIBEXTPROC device_attribute = nullptr;
  PFNEGLGETPLATFORMDISPLAYEXTPROC platform_display = nullptr;
  QueryBinary device_binary = nullptr;  // may be missing
};

Egl g_egl;

template <typename Function>
void look_up(Function& function, void* library, const char* name) {
  function = reinterpret_cast<Function>(dlsym(library, name));
}

template <typename Function>
void ask(Function& function, const char* name) {
  function = reinterpret_cast<Function>(g_egl.get_proc_address(name));
}

std::string uuid_text(const u8 (&bytes)[kUuidBytes]) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (size_t i = 0; i < kUuidBytes; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kHex[bytes[i] >> 4];
    text += kHex[bytes[i] & 15];
  }
  return text;
}

bool has_word(const char* words, const char* word) {
  const size_t size = std::strlen(word);
  for (const char* at = words; at != nullptr && (at = std::strstr(at, word)) != nullptr; at += size)
    if ((at == words || at[-1] == ' ') && (at[size] == 0 || at[size] == ' ')) return true;
  return false;
}

// The driver's number of the card with that UUID; -1 when it does not know. Only where EGL does not say
// UUIDs.
int cuda_ordinal(const std::string& uuid, const std::string& libcuda) {
  struct Uuid {
    u8 bytes[kUuidBytes];
  };
  void* library = dlopen(libcuda.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return -1;
  int (*init)(unsigned) = nullptr;
  int (*count_of)(int*) = nullptr;
  int (*uuid_of)(Uuid*, int) = nullptr;
  look_up(init, library, "cuInit");
  look_up(count_of, library, "cuDeviceGetCount");
  look_up(uuid_of, library, "cuDeviceGetUuid_v2");
  int count = 0;
  if (init == nullptr || count_of == nullptr || uuid_of == nullptr || init(0) != 0 || count_of(&count) != 0)
    return -1;
  for (int i = 0; i < count; ++i) {
    Uuid found{};
    if (uuid_of(&found, i) == 0 && uuid_text(found.bytes) == uuid) return i;
  }
  return -1;
}

bool is_cuda_device(EGLDeviceEXT device, EGLAttrib& ordinal) {
  return g_egl.device_attribute(device, kCudaDevice, &ordinal) == EGL_TRUE;
}

bool has_uuid(EGLDeviceEXT device, const std::string& uuid) {
  if (g_egl.device_binary == nullptr) return false;
  u8 bytes[kUuidBytes] = {};
  EGLint size = 0;
  return g_egl.device_binary(device, kDeviceUuid, sizeof bytes, bytes, &size) == EGL_TRUE &&
         size == sizeof bytes && uuid_text(bytes) == uuid;
}

EGLDeviceEXT find_nvidia(const std::vector<EGLDeviceEXT>& devices, const std::string& uuid,
                         const std::string& libcuda) {
  std::vector<std::pair<EGLDeviceEXT, EGLAttrib>> cards;
  for (EGLDeviceEXT device : devices) {
    if (has_uuid(device, uuid)) return device;
    EGLAttrib ordinal = 0;
    if (is_cuda_device(device, ordinal)) cards.emplace_back(device, ordinal);
  }
  if (cards.empty()) return EGL_NO_DEVICE_EXT;
  const int wanted = cuda_ordinal(uuid, libcuda);
  for (const auto& [device, ordinal] : cards)
    if (wanted >= 0 && ordinal == wanted) return device;
  return EGL_NO_DEVICE_EXT;
}

EGLDeviceEXT find_software(const std::vector<EGLDeviceEXT>& devices) {
  for (EGLDeviceEXT device : devices)
    if (has_word(g_egl.device_string(device, EGL_EXTENSIONS), "EGL_MESA_device_software")) return device;
  return EGL_NO_DEVICE_EXT;
}

// The software GPU stands in for NVIDIA's driver, and Mesa then for NVIDIA's OpenGL.
bool is_software(const std::string& libcuda) {
  return libcuda.substr(libcuda.rfind('/') + 1).starts_with("libgpupool-softgpu");
}

}  // namespace

bool Display::load(std::string& error) {
  void* library = dlopen("libEGL.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) {
    error = "the host has no libEGL.so.1 (Debian, Ubuntu: apt install libegl1)";
    return false;
  }
  look_up(g_egl.get_proc_address, library, "eglGetProcAddress");
  look_up(g_egl.initialize, library, "eglInitialize");
  look_up(g_egl.bind_api, library, "eglBindAPI");
  look_up(g_egl.choose_config, library, "eglChooseConfig");
  look_up(g_egl.create_context, library, "eglCreateContext");
  look_up(g_egl.destroy_context, library, "eglDestroyContext");
  look_up(g_egl.make_current, library, "eglMakeCurrent");
  look_up(g_egl.current_context, library, "eglGetCurrentContext");
  look_up(g_egl.query_string, library, "eglQueryString");
  error = "the host's libEGL.so.1 has no EGL_EXT_platform_device";
  if (g_egl.get_proc_address == nullptr || g_egl.query_string == nullptr || g_egl.bind_api == nullptr)
    return false;
  ask(g_egl.query_devices, "eglQueryDevicesEXT");
  ask(g_egl.device_string, "eglQueryDeviceStringEXT");
  ask(g_egl.device_attribute, "eglQueryDeviceAttribEXT");
  ask(g_egl.platform_display, "eglGetPlatformDisplayEXT");
  ask(g_egl.device_binary, "eglQueryDeviceBinaryEXT");
  return g_egl.query_devices != nullptr && g_egl.device_string != nullptr &&
         g_egl.device_attribute != nullptr && g_egl.platform_display != nullptr;
}

bool Display::open(const std::string& uuid, const std::string& libcuda, std::string& error) {
  if (!load(error)) return false;
  std::vector<EGLDeviceEXT> devices(kMostDevices);
  EGLint count = 0;
  if (g_egl.query_devices(kMostDevices, devices.data(), &count) != EGL_TRUE) count = 0;
  devices.resize(static_cast<size_t>(count));
  const bool software = is_software(libcuda);
  EGLDeviceEXT device = software ? find_software(devices) : find_nvidia(devices, uuid, libcuda);
  if (device == EGL_NO_DEVICE_EXT) {
    error = software ? "the host's EGL has no software device (Debian, Ubuntu: apt install libegl-mesa0)"
                     : "the host's EGL does not know " + uuid +
                           "; NVIDIA's OpenGL libraries (libnvidia-gl of the driver's version) are needed";
    return false;
  }
  return initialise(g_egl.platform_display(EGL_PLATFORM_DEVICE_EXT, device, nullptr), error);
}

bool Display::initialise(void* display, std::string& error) {
  EGLint major = 0;
  EGLint minor = 0;
  if (display == EGL_NO_DISPLAY || g_egl.initialize(display, &major, &minor) != EGL_TRUE) {
    error = "the host's EGL does not open its device";
    return false;
  }
  display_ = display;
  const EGLint wanted[] = {EGL_SURFACE_TYPE, EGL_PBUFFER_BIT, EGL_RENDERABLE_TYPE, EGL_OPENGL_BIT, EGL_NONE};
  EGLint count = 0;
  if (g_egl.bind_api(EGL_OPENGL_API) != EGL_TRUE ||
      g_egl.choose_config(display_, wanted, &config_, 1, &count) != EGL_TRUE || count == 0) {
    error = "the host's EGL has no OpenGL on that device";
    return false;
  }
  const char* vendor = g_egl.query_string(display_, EGL_VENDOR);
  name_ = vendor == nullptr ? "unknown" : vendor;
  return true;
}

void* Display::create_context(int major, int minor, bool shared) {
  const EGLint attributes[] = {EGL_CONTEXT_MAJOR_VERSION,
                               major,
                               EGL_CONTEXT_MINOR_VERSION,
                               minor,
                               EGL_CONTEXT_OPENGL_PROFILE_MASK,
                               EGL_CONTEXT_OPENGL_CORE_PROFILE_BIT,
                               EGL_NONE};
  return g_egl.create_context(display_, config_, shared ? g_egl.current_context() : EGL_NO_CONTEXT,
                              attributes);
}

void Display::destroy_context(void* context) {
  g_egl.destroy_context(display_, context);
}

Display::Any Display::find(const char* name) {
  return g_egl.get_proc_address(name);
}

bool Display::make_current(void* context) {
  return g_egl.make_current(display_, EGL_NO_SURFACE, EGL_NO_SURFACE, context) == EGL_TRUE;
}

}  // namespace gpupool::renderer
