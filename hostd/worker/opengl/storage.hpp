// What the objects of OpenGL take of the vGPU's memory. Bytes are charged before the driver is asked, in
// pages, by object, and given back when the object's name is deleted, when its last context is, or when the
// driver refuses. What the program may not have gives GL_OUT_OF_MEMORY and never reaches the driver.
//
// Not known here: an object whose name is deleted while a vertex array, a framebuffer or another context
// still uses it lives on in the driver. That is then the driver's overhead, which hostd measures.
#pragma once

#include <map>
#include <memory>
#include <unordered_map>

#include "hostd/worker/opengl/command.hpp"
#include "hostd/worker/opengl/texel.hpp"

namespace gpupool::worker {

enum class GlKind : u32 { buffer = 1, renderbuffer, texture };

// What is charged for one object; a view of a texture shares its texture's.
class GlThing {
 public:
  GlThing() = default;
  GlThing(const GlThing&) = delete;
  GlThing& operator=(const GlThing&) = delete;
  ~GlThing();

  u64 charged = 0;
  bool immutable = false;
  std::map<u32, GlImage> images;  // of a texture, by face * 256 + level
};

// The objects of contexts that share them.
class GlStorage {
 public:
  // By name; `default_of` is, for the texture without a name of a target, the context and the target.
  static u64 key(GlKind kind, u32 name) { return u64{static_cast<u32>(kind)} << 32 | name; }
  static u64 default_key(u32 context, u32 target) { return u64{context + 16} << 32 | target; }

  // Null: nothing is charged for it.
  [[nodiscard]] GlThing* find(u64 key) const;
  std::shared_ptr<GlThing>& operator[](u64 key) { return things_[key]; }
  void forget(u64 key) { things_.erase(key); }
  // The textures without names of a context that is gone.
  void forget_context(u32 context);

 private:
  std::unordered_map<u64, std::shared_ptr<GlThing>> things_;
};

// What a command will make of one object.
struct GlDemand {
  enum class Verdict { uncounted, counted, bad_target };
  Verdict verdict = Verdict::uncounted;
  u64 key = 0;
  u64 bytes = 0;  // of the whole object afterwards; ~0 for too many
  bool immutable = false;
  std::map<u32, GlImage> images;
};

// Charged while it lives. The driver is called in between, unless it was not taken(); at its end the driver
// is asked whether it has done it.
class GlCharge {
 public:
  GlCharge(GlContext& context, GlDemand demand);
  template <typename Arguments>
  GlCharge(GlContext& context, const Arguments& arguments)
      : GlCharge(context, demand_of(context, arguments)) {}
  GlCharge(const GlCharge&) = delete;
  GlCharge& operator=(const GlCharge&) = delete;
  ~GlCharge();
  [[nodiscard]] bool taken() const { return taken_; }

 private:
  GlContext& context_;
  GlDemand demand_;
  u64 wanted_ = 0;
  u64 before_ = 0;
  bool taken_ = true;
};

// The names are gone in the driver.
void forget_names(GlContext& context, GlKind kind, const gl::GLuint* names, u64 count);
// Of a surface: what is charged until it is released; 0 when the vGPU has not so much.
u64 charge_surface(u64 width, u64 height, u32 samples);
void release_surface(u64 bytes);

}  // namespace gpupool::worker
