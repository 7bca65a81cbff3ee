// OpenGL on the GPU that the vGPU is on, through EGL without a window system.
#pragma once

#include <string>
#include <vector>

#include "wire/cpp/types.hpp"

namespace gpupool::renderer {

// Where contexts are made. One a process; never taken down: the process ends by _exit().
class Display {
 public:
  // Opens the EGL device of the vGPU: for a GPU of NVIDIA's the one with that UUID ("GPU-..."), for the
  // software GPU Mesa's. `libcuda` answers which CUDA device has that UUID, where EGL itself does not. False
  // with `error`.
  bool open(const std::string& uuid, const std::string& libcuda, std::string& error);

  // A core profile context of that version, sharing with the current one where `shared`. Null when refused.
  void* create_context(int major, int minor, bool shared);
  void destroy_context(void* context);
  bool make_current(void* context);
  // A function of OpenGL's by its name; null when there is none.
  template <typename Function>
  void ask(Function& function, const char* name) {
    function = reinterpret_cast<Function>(find(name));
  }
  // "NVIDIA ...", for the log.
  [[nodiscard]] const std::string& name() const { return name_; }

 private:
  using Any = void (*)();
  static Any find(const char* name);
  bool load(std::string& error);
  bool initialise(void* display, std::string& error);

  void* display_ = nullptr;
  void* config_ = nullptr;
  std::string name_;
};

}  // namespace gpupool::renderer
