#include "hostd/renderer/virgl.hpp"

#include <EGL/egl.h>
#include <GL/gl.h>
#include <GL/glext.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#include "hostd/worker/log.hpp"

// The library's header declares it and does not say what is in it (virgl_hw.h): two corners of a box.
struct virgl_box {
  gpupool::u32 x, y, z, w, h, d;
};

namespace gpupool::renderer {
namespace {

constexpr u32 kContext = 1;

// What is asked of OpenGL besides the library, in whichever of its contexts is current: the one that was
// last drawn in. Its fences are no other.
struct OpenGl {
  PFNGLFENCESYNCPROC fence_sync = nullptr;
  PFNGLCLIENTWAITSYNCPROC client_wait_sync = nullptr;
  PFNGLDELETESYNCPROC delete_sync = nullptr;
  void (*flush)() = nullptr;
};

OpenGl g_gl;
Display* g_display = nullptr;
u32 g_passed = 0;

void* make_context(void*, int, virgl_renderer_gl_ctx_param* wanted) {
  return g_display->create_context(wanted->major_ver, wanted->minor_ver, wanted->shared);
}

void end_context(void*, void* context) {
  g_display->destroy_context(context);
}

int use_context(void*, int, void* context) {
  return g_display->make_current(context) ? 0 : -1;
}

void note_fence(void*, u32 number) {
  g_passed = number;
}

// What the library says of its client's mistakes: for who looks closely, never to standard error.
void note_text(const char* format, va_list arguments) {
  char text[400];
  const int size = std::vsnprintf(text, sizeof text, format, arguments);
  if (size > 0) worker::log(worker::LogLevel::debug, "virglrenderer", text);
}

// Mesa in the guest gives OpenGL 4.3, and with it compute shaders, to hosts that report 15 uniform blocks:
// the default one and 14 of the program's. NVIDIA's driver has exactly these 14, the least that 4.3 allows,
// and virglrenderer counts the default one in and one that it may need for itself out: 14 (vrend_renderer.c
// of 0.10.4 to 1.3.0). So it is told again: what then fails to link is a program that uses all 14.
void allow_compute(std::vector<u8>& caps) {
  constexpr size_t kUniformBlocks = 296;  // max_uniform_blocks of virgl_caps_v1 (virgl_hw.h)
  constexpr u32 kReported = 14;
  constexpr u32 kWanted = 15;
  u32 blocks = 0;
  if (caps.size() < kUniformBlocks + sizeof blocks) return;
  std::memcpy(&blocks, &caps[kUniformBlocks], sizeof blocks);
  if (blocks == kReported) std::memcpy(&caps[kUniformBlocks], &kWanted, sizeof kWanted);
}

virgl_box convert(const Box& box) {
  return virgl_box{box.x, box.y, box.z, box.width, box.height, box.depth};
}

}  // namespace

bool Virgl::start(Display& display, std::string& error) {
  if (!library_.load(error)) return false;
  g_display = &display;
  static virgl_renderer_callbacks callbacks = {};
  callbacks.version = 1;
  callbacks.write_fence = note_fence;
  callbacks.create_gl_context = make_context;
  callbacks.destroy_gl_context = end_context;
  callbacks.make_current = use_context;
  if (library_.virgl_set_debug_callback != nullptr) library_.virgl_set_debug_callback(note_text);
  // No flags: the contexts are ours, and fences are asked for, not waited for by a thread.
  if (library_.virgl_renderer_init(&callbacks, 0, &callbacks) != 0) {
    error = "virglrenderer does not start on " + display.name() + "; OpenGL 3.1 or later is needed";
    return false;
  }
  display.ask(g_gl.fence_sync, "glFenceSync");
  display.ask(g_gl.client_wait_sync, "glClientWaitSync");
  display.ask(g_gl.delete_sync, "glDeleteSync");
  display.ask(g_gl.flush, "glFlush");
  if (g_gl.fence_sync != nullptr && g_gl.client_wait_sync != nullptr && g_gl.delete_sync != nullptr &&
      g_gl.flush != nullptr)
    return true;
  error = "the OpenGL of " + display.name() + " has no fences (GL_ARB_sync)";
  return false;
}

bool Virgl::create_context(const std::string& name) {
  return library_.virgl_renderer_context_create(kContext, static_cast<u32>(name.size()), name.c_str()) == 0;
}

std::vector<u8> Virgl::capabilities(u32 set) {
  u32 version = 0;
  u32 size = 0;
  library_.virgl_renderer_get_cap_set(set, &version, &size);
  std::vector<u8> caps(size);
  if (size != 0) library_.virgl_renderer_fill_caps(set, version, caps.data());
  allow_compute(caps);
  return caps;
}

bool Virgl::create(u32 handle, const Shape& shape) {
  virgl_renderer_resource_create_args wanted = {};
  wanted.handle = handle;
  wanted.target = shape.target;
  wanted.format = shape.format;
  wanted.bind = shape.bind;
  wanted.width = shape.width;
  wanted.height = shape.height;
  wanted.depth = shape.depth;
  wanted.array_size = shape.array_size;
  wanted.last_level = shape.last_level;
  wanted.nr_samples = shape.samples;
  if (library_.virgl_renderer_resource_create(&wanted, nullptr, 0) != 0) return false;
  library_.virgl_renderer_ctx_attach_resource(kContext, static_cast<int>(handle));
  return true;
}

bool Virgl::attach(u32 handle, iovec* memory) {
  return library_.virgl_renderer_resource_attach_iov(static_cast<int>(handle), memory, 1) == 0;
}

void Virgl::destroy(u32 handle) {
  iovec* memory = nullptr;
  int count = 0;
  library_.virgl_renderer_ctx_detach_resource(kContext, static_cast<int>(handle));
  library_.virgl_renderer_resource_detach_iov(static_cast<int>(handle), &memory, &count);
  library_.virgl_renderer_resource_unref(handle);
}

bool Virgl::read(u32 handle, u32 level, u32 stride, u32 layer_stride, const Box& box, u64 offset,
                 iovec* memory) {
  virgl_box place = convert(box);
  return library_.virgl_renderer_transfer_read_iov(handle, kContext, level, stride, layer_stride, &place,
                                                   offset, memory, memory == nullptr ? 0 : 1) == 0;
}

bool Virgl::write(u32 handle, u32 level, u32 stride, u32 layer_stride, const Box& box, u64 offset,
                  iovec* memory) {
  virgl_box place = convert(box);
  return library_.virgl_renderer_transfer_write_iov(handle, kContext, static_cast<int>(level), stride,
                                                    layer_stride, &place, offset, memory,
                                                    memory == nullptr ? 0 : 1) == 0;
}

bool Virgl::submit(u32* words, u32 count) {
  return library_.virgl_renderer_submit_cmd(words, kContext, static_cast<int>(count)) == 0;
}

void Virgl::flush() {
  g_gl.flush();
}

void Virgl::mark() {
  if (mark_ != nullptr) g_gl.delete_sync(static_cast<GLsync>(mark_));
  mark_ = g_gl.fence_sync(GL_SYNC_GPU_COMMANDS_COMPLETE, 0);
}

bool Virgl::reach(u64 most_ns) {
  if (mark_ == nullptr) return true;
  const GLenum state = g_gl.client_wait_sync(static_cast<GLsync>(mark_), GL_SYNC_FLUSH_COMMANDS_BIT, most_ns);
  if (state == GL_TIMEOUT_EXPIRED) return false;
  g_gl.delete_sync(static_cast<GLsync>(mark_));
  mark_ = nullptr;
  if (state == GL_WAIT_FAILED) throw std::runtime_error("OpenGL cannot wait for its GPU any more");
  return true;
}

void Virgl::settle_queries() {
  // The library looks at queries when a fence of its own has been passed, and only then (vrend_renderer.c).
  fence();
  library_.virgl_renderer_poll();
}

u32 Virgl::fence() {
  ++newest_;
  if (library_.virgl_renderer_create_fence(static_cast<int>(newest_), kContext) != 0) g_passed = newest_;
  return newest_;
}

u32 Virgl::passed() {
  library_.virgl_renderer_poll();
  return g_passed;
}

}  // namespace gpupool::renderer
