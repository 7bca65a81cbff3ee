// What a program can choose of a configuration (EGL 1.5, 3.4).
#include <algorithm>
#include <array>

#include "guest/egl/display.hpp"

namespace gpupool::guest {

using namespace gpupool::gl;

namespace {
constexpr i32 kTrueColor = 4;  // X.h
}

bool config_attribute(const Config& config, u32 visual, i32 attribute, i32& value) {
  switch (static_cast<u32>(attribute)) {
    case EGL_BUFFER_SIZE:
      return value = 24 + config.alpha, true;
    case EGL_RED_SIZE:
    case EGL_GREEN_SIZE:
    case EGL_BLUE_SIZE:
      return value = 8, true;
    case EGL_ALPHA_SIZE:
      return value = config.alpha, true;
    case EGL_DEPTH_SIZE:
      return value = config.depth, true;
    case EGL_STENCIL_SIZE:
      return value = config.stencil, true;
    case EGL_SAMPLES:
      return value = config.samples, true;
    case EGL_SAMPLE_BUFFERS:
      return value = config.samples != 0, true;
    case EGL_CONFIG_ID:
      return value = config.id, true;
    case EGL_CONFIG_CAVEAT:
      return value = EGL_NONE, true;
    case EGL_COLOR_BUFFER_TYPE:
      return value = EGL_RGB_BUFFER, true;
    case EGL_TRANSPARENT_TYPE:
      return value = EGL_NONE, true;
    case EGL_NATIVE_VISUAL_TYPE:
      return value = visual != 0 ? kTrueColor : static_cast<i32>(EGL_NONE), true;
    case EGL_NATIVE_VISUAL_ID:
      return value = static_cast<i32>(visual), true;
    case EGL_NATIVE_RENDERABLE:
      return value = visual != 0, true;
    case EGL_SURFACE_TYPE:
      return value = EGL_PBUFFER_BIT | (visual != 0 ? EGL_WINDOW_BIT : 0), true;
    case EGL_RENDERABLE_TYPE:
    case EGL_CONFORMANT:
      return value = EGL_OPENGL_BIT | EGL_OPENGL_ES2_BIT | EGL_OPENGL_ES3_BIT, true;
    case EGL_MAX_PBUFFER_WIDTH:
    case EGL_MAX_PBUFFER_HEIGHT:
      return value = wire::kMostSurfaceEdge, true;
    case EGL_MAX_PBUFFER_PIXELS:
      return value = wire::kMostSurfaceEdge * wire::kMostSurfaceEdge, true;
    case EGL_LUMINANCE_SIZE:
    case EGL_ALPHA_MASK_SIZE:
    case EGL_BIND_TO_TEXTURE_RGB:
    case EGL_BIND_TO_TEXTURE_RGBA:
    case EGL_LEVEL:
    case EGL_MAX_SWAP_INTERVAL:
    case EGL_MIN_SWAP_INTERVAL:
    case EGL_TRANSPARENT_RED_VALUE:
    case EGL_TRANSPARENT_GREEN_VALUE:
    case EGL_TRANSPARENT_BLUE_VALUE:
      return value = 0, true;
    default:
      return false;
  }
}

namespace {

constexpr i32 kDontCare = -1;  // EGL_DONT_CARE, which the registry has as an expression

// How an attribute is compared (EGL 1.5, table 3.4): masks, exact values, and sizes that are at least so
// large.
bool fits(const Config& config, u32 visual, i32 attribute, i32 wanted, bool& known) {
  i32 value = 0;
  known = config_attribute(config, visual, attribute, value) ||
          static_cast<u32>(attribute) == EGL_MATCH_NATIVE_PIXMAP;
  if (!known || wanted == kDontCare) return true;
  switch (static_cast<u32>(attribute)) {
    case EGL_SURFACE_TYPE:
    case EGL_RENDERABLE_TYPE:
    case EGL_CONFORMANT:
      return (value & wanted) == wanted;
    case EGL_MATCH_NATIVE_PIXMAP:
    case EGL_MAX_PBUFFER_WIDTH:
    case EGL_MAX_PBUFFER_HEIGHT:
    case EGL_MAX_PBUFFER_PIXELS:
    case EGL_NATIVE_VISUAL_ID:
      return true;
    case EGL_CONFIG_ID:
    case EGL_CONFIG_CAVEAT:
    case EGL_COLOR_BUFFER_TYPE:
    case EGL_TRANSPARENT_TYPE:
    case EGL_NATIVE_VISUAL_TYPE:
    case EGL_NATIVE_RENDERABLE:
    case EGL_LEVEL:
      return value == wanted;
    default:
      return value >= wanted;
  }
}

}  // namespace

// Without a word about surfaces the specification asks for windows. Where there are none, a program that
// never makes one should not fail here: it gets what there is.
i32 matching_configs(const i32* attributes, u32 visual, std::vector<const Config*>& found) {
  for (const Config& config : configs()) {
    bool all = true;
    for (const i32* each = attributes; each != nullptr && *each != static_cast<i32>(EGL_NONE); each += 2) {
      bool known = true;
      all = fits(config, visual, each[0], each[1], known) && all;
      if (!known) return EGL_BAD_ATTRIBUTE;
    }
    if (all) found.push_back(&config);
  }
  // What has least beyond what was asked for comes first.
  std::ranges::stable_sort(found, {}, [](const Config* each) {
    return std::array{each->samples, each->depth, each->stencil, -each->alpha};
  });
  return EGL_SUCCESS;
}

}  // namespace gpupool::guest
