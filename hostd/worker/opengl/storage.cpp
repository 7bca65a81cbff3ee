#include "hostd/worker/opengl/storage.hpp"

#include <algorithm>
#include <utility>

#include "hostd/worker/memory_ledger.hpp"

namespace gpupool::worker {
namespace {

constexpr u64 kPage = 4096;  // a driver gives no less to an object
constexpr u32 kDevice = 0;   // the display is the first vGPU's (egl.cpp)

u64 in_pages(u64 bytes) {
  return bytes > ~u64{0} - kPage ? ~u64{0} : (bytes + kPage - 1) / kPage * kPage;
}

}  // namespace

GlThing::~GlThing() {
  if (charged != 0) memory_ledger().release(kDevice, charged);
}

GlThing* GlStorage::find(u64 key) const {
  const auto found = things_.find(key);
  return found == things_.end() ? nullptr : found->second.get();
}

void GlStorage::forget_context(u32 context) {
  const u64 first = default_key(context, 0);
  std::erase_if(things_, [&](const auto& thing) { return thing.first >> 32 == first >> 32; });
}

GlCharge::GlCharge(GlContext& context, GlDemand demand) : context_(context), demand_(std::move(demand)) {
  if (demand_.verdict == GlDemand::Verdict::uncounted) return;
  if (demand_.verdict == GlDemand::Verdict::bad_target) {
    taken_ = false;
    context_.fail(gl::GL_INVALID_ENUM);
    return;
  }
  const GlThing* const thing = context_.storage->find(demand_.key);
  before_ = thing == nullptr ? 0 : thing->charged;
  wanted_ = in_pages(demand_.bytes);
  if (wanted_ > before_ && !memory_ledger().charge(kDevice, wanted_ - before_)) {
    taken_ = false;
    context_.fail(gl::GL_OUT_OF_MEMORY);
    return;
  }
  context_.collect();
}

GlCharge::~GlCharge() {
  if (!taken_ || demand_.verdict != GlDemand::Verdict::counted) return;
  const bool done = context_.collect();
  const u64 superfluous = !done ? wanted_ - std::min(wanted_, before_) : before_ - std::min(wanted_, before_);
  if (superfluous != 0) memory_ledger().release(kDevice, superfluous);
  if (!done) return;
  std::shared_ptr<GlThing>& thing = (*context_.storage)[demand_.key];
  if (thing == nullptr) thing = std::make_shared<GlThing>();
  thing->charged = wanted_;
  thing->immutable = demand_.immutable;
  thing->images = std::move(demand_.images);
}

void forget_names(GlContext& context, GlKind kind, const gl::GLuint* names, u64 count) {
  for (u64 i = 0; i < count; ++i)
    if (names[i] != 0) context.storage->forget(GlStorage::key(kind, names[i]));
}

// Two colour buffers, one of depth and stencil together, each sample of them, and what they are resolved to.
u64 charge_surface(u64 width, u64 height, u32 samples) {
  GlImage image;
  image.width = width;
  image.height = height;
  image.texel_bytes = 4 + 4 + 8;
  image.samples = samples + 1;
  const u64 bytes = in_pages(image.bytes());
  return memory_ledger().charge(kDevice, bytes) ? bytes : 0;
}

void release_surface(u64 bytes) {
  memory_ledger().release(kDevice, bytes);
}

}  // namespace gpupool::worker
