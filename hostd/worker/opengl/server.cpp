#include "hostd/worker/opengl/server.hpp"

#include <vector>

#include "hostd/worker/log.hpp"

namespace gpupool::worker {
namespace {
using namespace gpupool::gl;

constexpr i32 value_of(u32 number) {
  return static_cast<i32>(number);
}

}  // namespace

bool GlServer::open(Worker& worker, std::string& error) {
  if (display_ != nullptr) return true;
  worker_ = &worker;
  if (!loaded_ && !egl_.load(error)) return false;
  loaded_ = true;
  display_ = open_display(egl_, worker, error);
  if (display_ == nullptr) return false;
  load_gl(api_, egl_.get_proc_address);
  if (api_.glGetIntegerv == nullptr || api_.glGetError == nullptr) {
    error = "the host's EGL knows no functions of OpenGL";
    display_ = nullptr;
    return false;
  }
  log(LogLevel::info, "OpenGL is in use", "");
  return true;
}

i32 GlServer::create_context(const wire::GlContextWish& wish) {
  if (wish.index == 0 || wish.index >= wire::kMostGlContexts || contexts_.contains(wish.index))
    throw wire::ProtocolError("a context of OpenGL under an index that is none, or in use");
  const bool es = wish.api == EGL_OPENGL_ES_API;
  if (!es && wish.api != EGL_OPENGL_API) throw wire::ProtocolError("an unknown API");
  // Others take addresses of the program's memory, which would be addresses here.
  if (es ? wish.major < 2 : wish.profile != EGL_CONTEXT_OPENGL_CORE_PROFILE_BIT)
    throw wire::ProtocolError("a context without the core profile");
  const auto share = contexts_.find(wish.share);
  if (wish.share != 0 && share == contexts_.end()) return EGL_BAD_CONTEXT;
  std::vector<i32> attributes = {value_of(EGL_CONTEXT_MAJOR_VERSION), static_cast<i32>(wish.major),
                                 value_of(EGL_CONTEXT_MINOR_VERSION), static_cast<i32>(wish.minor)};
  const auto add = [&](u32 name, u32 value) {
    attributes.insert(attributes.end(), {value_of(name), value_of(value)});
  };
  // A context of 3.1 has no profiles.
  if (!es && (wish.major > 3 || wish.minor >= 2))
    add(EGL_CONTEXT_OPENGL_PROFILE_MASK, EGL_CONTEXT_OPENGL_CORE_PROFILE_BIT);
  if ((wish.flags & wire::kGlDebug) != 0) add(EGL_CONTEXT_OPENGL_DEBUG, 1);
  if ((wish.flags & wire::kGlForward) != 0 && !es) add(EGL_CONTEXT_OPENGL_FORWARD_COMPATIBLE, 1);
  attributes.push_back(value_of(EGL_NONE));
  if (egl_.bind_api(wish.api) == 0) return egl_.get_error();
  void* const made = egl_.create_context(display_, nullptr, wish.share == 0 ? nullptr : share->second.context,
                                         attributes.data());
  if (made == nullptr) return egl_.get_error();
  contexts_.emplace(wish.index, GlContext{.api = api_,
                                          .context = made,
                                          .index = wish.index,
                                          .client_api = wish.api,
                                          .syncs = &syncs_,
                                          .storage = wish.share == 0 ? std::make_shared<GlStorage>()
                                                                     : share->second.storage});
  return EGL_SUCCESS;
}

void GlServer::destroy_context(u32 index) {
  const auto found = contexts_.find(index);
  if (found == contexts_.end()) throw wire::ProtocolError("no such context of OpenGL");
  settle(index);
  if (current_ == index) {
    egl_.make_current(display_, nullptr, nullptr, nullptr);
    current_ = 0;
  }
  egl_.destroy_context(display_, found->second.context);
  found->second.storage->forget_context(index);
  contexts_.erase(found);
}

i32 GlServer::create_surface(const wire::GlSurfaceWish& wish) {
  if (wish.index == 0 || wish.index >= wire::kMostGlContexts || surfaces_.contains(wish.index))
    throw wire::ProtocolError("a surface under an index that is none, or in use");
  if (wish.width == 0 || wish.height == 0 || wish.width > wire::kMostSurfaceEdge ||
      wish.height > wire::kMostSurfaceEdge || wish.alpha > 8 || wish.depth > 32 || wish.stencil > 8 ||
      wish.samples > 32)
    throw wire::ProtocolError("a surface that cannot be");
  const i32 wanted[] = {value_of(EGL_SURFACE_TYPE),
                        value_of(EGL_PBUFFER_BIT),
                        value_of(EGL_RENDERABLE_TYPE),
                        value_of(EGL_OPENGL_BIT),
                        value_of(EGL_RED_SIZE),
                        8,
                        value_of(EGL_GREEN_SIZE),
                        8,
                        value_of(EGL_BLUE_SIZE),
                        8,
                        value_of(EGL_ALPHA_SIZE),
                        value_of(wish.alpha),
                        value_of(EGL_DEPTH_SIZE),
                        value_of(wish.depth),
                        value_of(EGL_STENCIL_SIZE),
                        value_of(wish.stencil),
                        value_of(EGL_SAMPLES),
                        value_of(wish.samples),
                        value_of(EGL_NONE)};
  void* config = nullptr;
  i32 count = 0;
  if (egl_.choose_config(display_, wanted, &config, 1, &count) == 0) return egl_.get_error();
  if (count == 0) return EGL_BAD_ALLOC;
  const u64 charged = charge_surface(wish.width, wish.height, wish.samples);
  if (charged == 0) return EGL_BAD_ALLOC;
  const i32 size[] = {value_of(EGL_WIDTH), value_of(wish.width), value_of(EGL_HEIGHT), value_of(wish.height),
                      value_of(EGL_NONE)};
  void* const made = egl_.create_pbuffer(display_, config, size);
  if (made == nullptr) {
    release_surface(charged);
    return egl_.get_error();
  }
  surfaces_.emplace(wish.index, Surface{made, charged});
  return EGL_SUCCESS;
}

void GlServer::destroy_surface(u32 index) {
  const auto found = surfaces_.find(index);
  if (found == surfaces_.end()) throw wire::ProtocolError("no such surface of OpenGL");
  bool in_use = false;
  for (auto& [each, context] : contexts_) {
    if (context.draw != found->second.surface && context.read != found->second.surface) continue;
    context.draw = context.read = nullptr;
    in_use = in_use || each == current_;
  }
  if (in_use) {
    egl_.make_current(display_, nullptr, nullptr, nullptr);
    current_ = 0;
  }
  egl_.destroy_surface(display_, found->second.surface);
  release_surface(found->second.charged);
  surfaces_.erase(found);
}

void* GlServer::surface(u32 index, bool& found) const {
  if (index == 0) return nullptr;
  const auto at = surfaces_.find(index);
  if (at != surfaces_.end()) return at->second.surface;
  found = false;
  return nullptr;
}

i32 GlServer::use_surfaces(u32 index, u32 draw, u32 read) {
  const auto context = contexts_.find(index);
  bool found = context != contexts_.end();
  void* const drawn = surface(draw, found);
  void* const read_from = surface(read, found);
  if (!found) throw wire::ProtocolError("no such context or surface of OpenGL");
  if ((drawn == nullptr) != (read_from == nullptr)) return EGL_BAD_MATCH;
  context->second.draw = drawn;
  context->second.read = read_from;
  current_ = 0;
  return make_current(index);
}

i32 GlServer::make_current(u32 index) {
  const GlContext& context = contexts_.at(index);
  // EGL keeps a current context for each API.
  egl_.bind_api(context.client_api);
  if (egl_.make_current(display_, context.draw, context.read, context.context) == 0) {
    current_ = 0;
    return egl_.get_error();
  }
  current_ = index;
  return EGL_SUCCESS;
}

GlContext* GlServer::use(u32 index) {
  const auto found = contexts_.find(index);
  if (found == contexts_.end()) return nullptr;
  if (index != current_ && make_current(index) != EGL_SUCCESS) return nullptr;
  return &found->second;
}

}  // namespace gpupool::worker
