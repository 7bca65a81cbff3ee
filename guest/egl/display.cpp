#include "guest/egl/display.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>

#include "guest/runtime/log.hpp"
#include "wire_functions.hpp"

namespace gpupool::guest {
namespace {

using namespace gpupool::gl;

// Every combination that a host's driver can be expected to have; colour is always 8 bits.
constexpr std::array<Config, 8> kConfigs = {{{1, 8, 24, 8, 0},
                                             {2, 8, 24, 0, 0},
                                             {3, 8, 0, 0, 0},
                                             {4, 0, 24, 8, 0},
                                             {5, 0, 24, 0, 0},
                                             {6, 0, 0, 0, 0},
                                             {7, 8, 24, 8, 4},
                                             {8, 0, 24, 8, 4}}};

u32 flush_current() {
  Context* const context = current_context();
  if (context == nullptr) return 0;
  context->flush();
  return context->index();
}

// The session is libcuda.so.1's, which lies beside this library: one of another installation would not fit.
const PrivateTable* find_table(std::string& why) {
  Dl_info here{};
  dladdr(reinterpret_cast<void*>(&find_table), &here);
  std::string path = here.dli_fname == nullptr ? "" : here.dli_fname;
  path = path.substr(0, path.rfind('/') + 1) + "libcuda.so.1";
  void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const said = dlerror();
    why = said == nullptr ? path : said;
    return nullptr;
  }
  const auto find = reinterpret_cast<FindPrivateTable>(dlsym(library, kPrivateTableName));
  const PrivateTable* const table = find == nullptr ? nullptr : find(kPrivateTableVersion);
  if (table == nullptr)
    why = path + " is of another version of gpupool than libEGL_gpupool.so";
  else
    table->use_opengl(flush_current);
  return table;
}

}  // namespace

std::span<const Config> configs() {
  return kConfigs;
}

ThreadEgl& thread_egl() {
  static thread_local ThreadEgl state;
  return state;
}

Display& Display::only() {
  // Never destroyed: programs call us from their exit handlers.
  static auto& display = *new Display();
  return display;
}

i32 Display::exchange(const u8* payload, u32 bytes, bool wait) {
  PrivateMessage message;
  message.function = static_cast<u16>(wire::Function::gl_manage);
  message.payload = payload;
  message.payload_bytes = bytes;
  u64 ticket = 0;
  answer_.resize(wire::kReplyBytes);
  answered_ = 0;
  const i32 result = wait ? table_->wait(message, ticket, answer_.data(), wire::kReplyBytes, answered_)
                          : table_->send(message, ticket);
  if (result != 0) return EGL_BAD_ALLOC;
  if (!wait) return EGL_SUCCESS;
  i32 error = EGL_BAD_ALLOC;
  if (answered_ >= sizeof error) std::memcpy(&error, answer_.data(), sizeof error);
  return error;
}

bool Display::open() {
  const std::lock_guard lock(mutex);
  if (open_) return true;
  std::string why;
  if (table_ == nullptr) table_ = find_table(why);
  if (table_ == nullptr) {
    log_line("OpenGL cannot be used: %s", why.c_str());
    return false;
  }
  if (table_->connect() != 0) return false;  // libcuda.so.1 has said why
  if (manage(wire::GlManage::open, true) != EGL_SUCCESS) {
    const u32 text = answered_ > 4 ? answered_ - 4 : 0;
    log_line("the host has no OpenGL for this vGPU: %.*s", static_cast<int>(text),
             reinterpret_cast<const char*>(answer_.data() + 4));
    return false;
  }
  open_ = true;
  return true;
}

const Config* Display::config(egl::EGLConfig handle) const {
  for (const Config& each : kConfigs)
    if (reinterpret_cast<egl::EGLConfig>(static_cast<u64>(each.id)) == handle) return &each;
  return nullptr;
}

Surface* Display::surface(egl::EGLSurface handle) {
  const auto found = surfaces_.find(handle);
  return found == surfaces_.end() || found->second->destroyed ? nullptr : found->second.get();
}

ContextEntry* Display::context(egl::EGLContext handle) {
  const auto found = contexts_.find(handle);
  return found == contexts_.end() || found->second->context->destroyed ? nullptr : found->second.get();
}

u32 Display::free_index() {
  if (!free_.empty()) {
    const u32 index = free_.back();
    free_.pop_back();
    return index;
  }
  return next_index_ < wire::kMostGlContexts ? next_index_++ : 0;
}

i32 Display::create_context(const wire::GlContextWish& wanted, const Config* its_config,
                            ContextEntry*& made) {
  wire::GlContextWish wish = wanted;
  wish.index = free_index();
  if (wish.index == 0) return EGL_BAD_ALLOC;
  if (const i32 error = manage(wire::GlManage::create_context, true, wish); error != EGL_SUCCESS) {
    free_.push_back(wish.index);
    return error;
  }
  auto entry = std::make_unique<ContextEntry>();
  entry->context = std::make_unique<Context>(*table_, wish.index);
  entry->context->arrays.possible = wish.api == 0x30a0;  // EGL_OPENGL_ES_API
  entry->context->arrays.restarts = wish.major >= 3;
  entry->config = its_config;
  entry->api = wish.api;
  entry->major = static_cast<i32>(wish.major);
  made = entry.get();
  contexts_[made] = std::move(entry);
  return EGL_SUCCESS;
}

i32 Display::make_pbuffer(i32 width, i32 height, const Config& its_config, u32& index) {
  wire::GlSurfaceWish wish;
  wish.index = index = free_index();
  if (index == 0) return EGL_BAD_ALLOC;
  wish.width = static_cast<u32>(width);
  wish.height = static_cast<u32>(height);
  wish.alpha = static_cast<u32>(its_config.alpha);
  wish.depth = static_cast<u32>(its_config.depth);
  wish.stencil = static_cast<u32>(its_config.stencil);
  wish.samples = static_cast<u32>(its_config.samples);
  const i32 error = manage(wire::GlManage::create_surface, true, wish);
  if (error != EGL_SUCCESS) free_.push_back(index);
  return error;
}

void Display::drop_pbuffer(u32 index) {
  manage(wire::GlManage::destroy_surface, false, index);
  free_.push_back(index);
}

i32 Display::create_surface(i32 width, i32 height, const Config& its_config, Surface*& made) {
  auto surface = std::make_unique<Surface>();
  if (const i32 error = make_pbuffer(width, height, its_config, surface->index); error != EGL_SUCCESS)
    return error;
  surface->width = width;
  surface->height = height;
  surface->config = &its_config;
  made = surface.get();
  surfaces_[made] = std::move(surface);
  return EGL_SUCCESS;
}

void Display::forget(ContextEntry& entry) {
  const u32 index = entry.context->index();
  manage(wire::GlManage::destroy_context, false, index);
  free_.push_back(index);
  contexts_.erase(&entry);
}

void Display::forget(Surface& surface) {
  drop_pbuffer(surface.index);
  if (surface.window != 0) surface.server->end_drawing(surface.drawing);
  surfaces_.erase(&surface);
}

void Display::destroy(ContextEntry& entry) {
  if (entry.current)
    entry.context->destroyed = true;  // it goes when it is no longer current
  else
    forget(entry);
}

void Display::destroy(Surface& surface) {
  if (surface.users != 0)
    surface.destroyed = true;
  else
    forget(surface);
}

void Display::release(ContextEntry& entry) {
  entry.context->flush();
  entry.current = false;
  for (Surface* surface : {entry.draw, entry.read})
    if (surface != nullptr && --surface->users == 0 && surface->destroyed) forget(*surface);
  entry.draw = entry.read = nullptr;
  if (entry.context->destroyed) forget(entry);
}

i32 Display::make_current(ContextEntry* entry, Surface* draw, Surface* read) {
  ThreadEgl& thread = thread_egl();
  if (entry != nullptr && entry->current && thread.current != entry) return EGL_BAD_ACCESS;
  if (entry != nullptr && entry == thread.current && entry->draw == draw && entry->read == read) {
    entry->context->flush();
    return EGL_SUCCESS;
  }
  if (entry != nullptr) {
    entry->context->flush();
    const u32 draw_index = draw == nullptr ? 0 : draw->index;
    const u32 read_index = read == nullptr ? 0 : read->index;
    // Without surfaces, as before: nothing to tell.
    if (draw != entry->draw || read != entry->read)
      if (const i32 error =
              manage(wire::GlManage::use_surfaces, true, entry->context->index(), draw_index, read_index);
          error != EGL_SUCCESS)
        return error;
    for (Surface* surface : {draw, read})
      if (surface != nullptr) ++surface->users;
  }
  ContextEntry* const before = thread.current;
  thread.current = nullptr;
  t_context = nullptr;
  if (before != nullptr) release(*before);
  if (entry == nullptr) return EGL_SUCCESS;
  entry->current = true;
  entry->draw = draw;
  entry->read = read;
  thread.current = entry;
  t_context = entry->context.get();
  return EGL_SUCCESS;
}

void Display::close() {
  const std::lock_guard lock(mutex);
  // Contexts and surfaces go as if each were destroyed; current ones when they no longer are.
  std::vector<ContextEntry*> contexts;
  for (auto& [handle, entry] : contexts_)
    if (!entry->context->destroyed) contexts.push_back(entry.get());
  for (ContextEntry* entry : contexts) destroy(*entry);
  std::vector<Surface*> surfaces;
  for (auto& [handle, surface] : surfaces_)
    if (!surface->destroyed) surfaces.push_back(surface.get());
  for (Surface* surface : surfaces) destroy(*surface);
  open_ = false;
}

}  // namespace gpupool::guest
