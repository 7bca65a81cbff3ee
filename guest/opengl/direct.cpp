#include "guest/opengl/direct.hpp"

#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>

#include "guest/runtime/transport/endpoint.hpp"

namespace gpupool::guest::opengl {
namespace {

constexpr char kLibrary[] = "libEGL_gpupool.so";
// Where distributions with GLVND have Mesa's description; `gpupool run` takes the same (cli/opengl.py).
constexpr char kMesaVendor[] = "/usr/share/glvnd/egl_vendor.d/50_mesa.json";

// Of a file, without symbolic links; empty where there is none.
std::string folder_of(const std::string& path) {
  const size_t slash = path.rfind('/');
  char whole[PATH_MAX];
  if (slash == std::string::npos || realpath(path.substr(0, slash + 1).c_str(), whole) == nullptr) return "";
  return whole;
}

// This program's, where a wheel and the guest package have the libraries.
std::string own_folder() {
  char path[PATH_MAX];
  const ssize_t got = readlink("/proc/self/exe", path, sizeof path);
  return got <= 0 || got == sizeof path ? "" : folder_of(std::string(path, static_cast<size_t>(got)));
}

// The folder with the library: beside this program, else where the loader looks, as in a container. It is
// loaded, so that what the program's GLVND would silently pass over is said here. Empty with `why`.
std::string find_library(bool& beside, std::string& why) {
  const std::string own = own_folder() + '/' + kLibrary;
  beside = access(own.c_str(), F_OK) == 0;
  void* const library = dlopen(beside ? own.c_str() : kLibrary, RTLD_NOW | RTLD_LOCAL);
  link_map* map = nullptr;
  if (library != nullptr && dlinfo(library, RTLD_DI_LINKMAP, &map) == 0) return folder_of(map->l_name);
  const char* const said = dlerror();
  why =
      std::string(said == nullptr ? kLibrary : said) +
      "; it belongs beside gpupool's libcuda.so.1: install gpupool, or write the container's CDI file again "
      "with `gpupool cdi`";
  return "";
}

std::string quoted(const std::string& text) {
  std::string json = "\"";
  for (const char each : text) {
    if (each == '"' || each == '\\') json += '\\';
    json += each;
  }
  return json + '"';
}

bool write_vendor(const std::string& path, const std::string& library, std::string& why) {
  const std::string text =
      R"({"file_format_version": "1.0.0", "ICD": {"library_path": )" + quoted(library) + "}}\n";
  const Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
  if (file.get() >= 0 && write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()))
    return true;
  why = "cannot write " + path + ": " + std::strerror(errno);
  return false;
}

}  // namespace

bool choose_direct(const std::string& folder, std::string& why) {
  bool beside = false;
  const std::string place = find_library(beside, why);
  if (place.empty()) return false;
  // Its session is that library's, which it looks for beside itself and nowhere else.
  if (access((place + "/libcuda.so.1").c_str(), R_OK) != 0) {
    why = "libcuda.so.1 is not beside " + place + '/' + kLibrary + "; install the two together";
    return false;
  }
  if (!write_vendor(folder + kVendorFile, place + '/' + kLibrary, why)) return false;
  std::string vendors = folder + kVendorFile;
  if (access(kMesaVendor, R_OK) == 0) vendors += std::string(":") + kMesaVendor;
  setenv("__EGL_VENDOR_LIBRARY_FILENAMES", vendors.c_str(), 1);
  if (!beside) return true;  // the loader finds libcuda.so.1, too
  const char* const given = std::getenv("LD_LIBRARY_PATH");
  const std::string after = given == nullptr || *given == 0 ? "" : std::string(":") + given;
  setenv("LD_LIBRARY_PATH", (place + after).c_str(), 1);
  return true;
}

}  // namespace gpupool::guest::opengl
