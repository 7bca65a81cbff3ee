// libvirglrenderer on an EGL display. One a process: the library has one state.
#pragma once

#include "hostd/renderer/backend.hpp"
#include "hostd/renderer/display.hpp"
#include "hostd/renderer/library.hpp"

namespace gpupool::renderer {

class Virgl : public Backend {
 public:
  // Starts OpenGL on that display, which must live as long as the process. False with `error`.
  bool start(Display& display, std::string& error);

  bool create_context(const std::string& name) override;
  std::vector<u8> capabilities(u32 set) override;
  bool create(u32 handle, const Shape& shape) override;
  bool attach(u32 handle, iovec* memory) override;
  void destroy(u32 handle) override;
  bool read(u32 handle, u32 level, u32 stride, u32 layer_stride, const Box& box, u64 offset,
            iovec* memory) override;
  bool write(u32 handle, u32 level, u32 stride, u32 layer_stride, const Box& box, u64 offset,
             iovec* memory) override;
  bool submit(u32* words, u32 count) override;
  void flush() override;
  void mark() override;
  bool reach(u64 most_ns) override;
  void settle_queries() override;
  u32 fence() override;
  u32 passed() override;

 private:
  VirglLibrary library_;
  void* mark_ = nullptr;
  u32 newest_ = 0;
};

}  // namespace gpupool::renderer
