#include "hostd/softgpu/api/graphics_gl.hpp"

#include <dlfcn.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <type_traits>

#include "wire/cpp/gl_types.hpp"

namespace gpupool::softgpu {
namespace {

using namespace gpupool::gl;

// The registry's numbers (gl.xml).
constexpr u32 kCopyReadBuffer = 0x8F36;  // and its binding
constexpr u32 kBufferSize = 0x8764, kBufferMapped = 0x88BC;
constexpr u32 kMapRead = 1, kMapWrite = 2, kMapInvalidateRange = 4;
constexpr u32 kTexture2d = 0x0DE1, kRectangle = 0x84F5, kTexture3d = 0x806F, kArray2d = 0x8C1A,
              kCube = 0x8513, kCubeFirstFace = 0x8515, kRenderbuffer = 0x8D41;
constexpr u32 kWidth = 0x1000, kHeight = 0x1001, kInternalFormat = 0x1003, kDepth = 0x8071;
constexpr u32 kMostLevels = 16;

struct Api {
  void* (*current_context)() = nullptr;
  GLenum (*get_error)() = nullptr;
  void (*get_integer)(GLenum, GLint*) = nullptr;
  GLboolean (*is_buffer)(GLuint) = nullptr;
  void (*bind_buffer)(GLenum, GLuint) = nullptr;
  void (*get_buffer_integer)(GLenum, GLenum, GLint64*) = nullptr;
  void* (*map_buffer)(GLenum, GLintptr, GLsizeiptr, GLbitfield) = nullptr;
  GLboolean (*unmap_buffer)(GLenum) = nullptr;
  GLboolean (*is_texture)(GLuint) = nullptr;
  void (*bind_texture)(GLenum, GLuint) = nullptr;
  void (*get_level)(GLenum, GLint, GLenum, GLint*) = nullptr;
  void (*get_image)(GLenum, GLint, GLenum, GLenum, void*) = nullptr;
  void (*set_image_2d)(GLenum, GLint, GLint, GLint, GLsizei, GLsizei, GLenum, GLenum, const void*) = nullptr;
  void (*set_image_3d)(GLenum, GLint, GLint, GLint, GLint, GLsizei, GLsizei, GLsizei, GLenum, GLenum,
                       const void*) = nullptr;
  void (*pixel_store)(GLenum, GLint) = nullptr;
  bool complete = true;
};

// EGL's, if the process has loaded it: who has not cannot have a context.
const Api* api() {
  static const Api found = [] {
    Api table;
    using Function = void (*)();
    void* const egl = dlopen("libEGL.so.1", RTLD_NOW | RTLD_NOLOAD);
    const auto find = egl == nullptr
                          ? nullptr
                          : reinterpret_cast<Function (*)(const char*)>(dlsym(egl, "eglGetProcAddress"));
    if (find == nullptr) {
      table.complete = false;
      return table;
    }
    const auto get = [&](auto& function, const char* name) {
      function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(find(name));
      table.complete = table.complete && function != nullptr;
    };
    get(table.current_context, "eglGetCurrentContext");
    get(table.get_error, "glGetError");
    get(table.get_integer, "glGetIntegerv");
    get(table.is_buffer, "glIsBuffer");
    get(table.bind_buffer, "glBindBuffer");
    get(table.get_buffer_integer, "glGetBufferParameteri64v");
    get(table.map_buffer, "glMapBufferRange");
    get(table.unmap_buffer, "glUnmapBuffer");
    get(table.is_texture, "glIsTexture");
    get(table.bind_texture, "glBindTexture");
    get(table.get_level, "glGetTexLevelParameteriv");
    get(table.get_image, "glGetTexImage");
    get(table.set_image_2d, "glTexSubImage2D");
    get(table.set_image_3d, "glTexSubImage3D");
    get(table.pixel_store, "glPixelStorei");
    return table;
  }();
  return found.complete ? &found : nullptr;
}

const Api& gl() {
  const Api* const found = api();
  require(found != nullptr && found->current_context() != nullptr, CUDA_ERROR_INVALID_VALUE);
  return *found;
}

u32 get(u32 name) {
  GLint value = 0;
  gl().get_integer(name, &value);
  return static_cast<u32>(value);
}

u32 binding_of(u32 target) {
  switch (target) {
    case kTexture2d:
      return 0x8069;
    case kRectangle:
      return 0x84F6;
    case kTexture3d:
      return 0x806A;
    case kArray2d:
      return 0x8C1D;
    case kCube:
      return 0x8514;
    case kRenderbuffer:  // the driver takes them; here nothing reads or writes one
      fail(CUDA_ERROR_NOT_SUPPORTED);
    default:
      fail(CUDA_ERROR_INVALID_VALUE);
  }
}

// Rows without gaps, from and to memory, while this lives.
class PlainPixels {
 public:
  explicit PlainPixels(bool pack)
      : names_(pack ? std::array<u32, 8>{0x0D00, 0x0D01, 0x0D02, 0x0D03, 0x0D04, 0x806B, 0x806C, 0x0D05}
                    : std::array<u32, 8>{0x0CF0, 0x0CF1, 0x0CF2, 0x0CF3, 0x0CF4, 0x806D, 0x806E, 0x0CF5}),
        buffer_(pack ? 0x88EB : 0x88EC),
        bound_(get(pack ? 0x88ED : 0x88EF)) {
    for (size_t i = 0; i < names_.size(); ++i) {
      before_[i] = static_cast<GLint>(get(names_[i]));
      gl().pixel_store(names_[i], i + 1 == names_.size() ? 1 : 0);  // the last is the alignment
    }
    gl().bind_buffer(buffer_, 0);
  }
  ~PlainPixels() {
    for (size_t i = 0; i < names_.size(); ++i) gl().pixel_store(names_[i], before_[i]);
    gl().bind_buffer(buffer_, bound_);
  }
  PlainPixels(const PlainPixels&) = delete;
  PlainPixels& operator=(const PlainPixels&) = delete;

 private:
  std::array<u32, 8> names_;
  std::array<GLint, 8> before_{};
  u32 buffer_, bound_;
};

// What cuGraphicsGLRegisterImage takes (cudaGL.h), of core profiles.
constexpr u32 kRed = 0x1903, kRg = 0x8227, kRgba = 0x1908;
constexpr u32 kRedInteger = 0x8D94, kRgInteger = 0x8228, kRgbaInteger = 0x8D99;
constexpr u32 kByte = 0x1400, kUbyte = 0x1401, kShort = 0x1402, kUshort = 0x1403, kInt = 0x1404,
              kUint = 0x1405, kFloat = 0x1406, kHalf = 0x140B;
constexpr PixelLayout kLayouts[] = {
    {0x8229, kRed, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 1},
    {0x822B, kRg, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 2},
    {0x8058, kRgba, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 4},
    {kRgba, kRgba, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 4},
    {0x822A, kRed, kUshort, CU_AD_FORMAT_UNSIGNED_INT16, 1},
    {0x822C, kRg, kUshort, CU_AD_FORMAT_UNSIGNED_INT16, 2},
    {0x805B, kRgba, kUshort, CU_AD_FORMAT_UNSIGNED_INT16, 4},
    {0x822D, kRed, kHalf, CU_AD_FORMAT_HALF, 1},
    {0x822F, kRg, kHalf, CU_AD_FORMAT_HALF, 2},
    {0x881A, kRgba, kHalf, CU_AD_FORMAT_HALF, 4},
    {0x822E, kRed, kFloat, CU_AD_FORMAT_FLOAT, 1},
    {0x8230, kRg, kFloat, CU_AD_FORMAT_FLOAT, 2},
    {0x8814, kRgba, kFloat, CU_AD_FORMAT_FLOAT, 4},
    {0x8231, kRedInteger, kByte, CU_AD_FORMAT_SIGNED_INT8, 1},
    {0x8237, kRgInteger, kByte, CU_AD_FORMAT_SIGNED_INT8, 2},
    {0x8D8E, kRgbaInteger, kByte, CU_AD_FORMAT_SIGNED_INT8, 4},
    {0x8232, kRedInteger, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 1},
    {0x8238, kRgInteger, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 2},
    {0x8D7C, kRgbaInteger, kUbyte, CU_AD_FORMAT_UNSIGNED_INT8, 4},
    {0x8233, kRedInteger, kShort, CU_AD_FORMAT_SIGNED_INT16, 1},
    {0x8239, kRgInteger, kShort, CU_AD_FORMAT_SIGNED_INT16, 2},
    {0x8D88, kRgbaInteger, kShort, CU_AD_FORMAT_SIGNED_INT16, 4},
    {0x8234, kRedInteger, kUshort, CU_AD_FORMAT_UNSIGNED_INT16, 1},
    {0x823A, kRgInteger, kUshort, CU_AD_FORMAT_UNSIGNED_INT16, 2},
    {0x8D76, kRgbaInteger, kUshort, CU_AD_FORMAT_UNSIGNED_INT16, 4},
    {0x8235, kRedInteger, kInt, CU_AD_FORMAT_SIGNED_INT32, 1},
    {0x823B, kRgInteger, kInt, CU_AD_FORMAT_SIGNED_INT32, 2},
    {0x8D82, kRgbaInteger, kInt, CU_AD_FORMAT_SIGNED_INT32, 4},
    {0x8236, kRedInteger, kUint, CU_AD_FORMAT_UNSIGNED_INT32, 1},
    {0x823C, kRgInteger, kUint, CU_AD_FORMAT_UNSIGNED_INT32, 2},
    {0x8D70, kRgbaInteger, kUint, CU_AD_FORMAT_UNSIGNED_INT32, 4},
};

}  // namespace

bool is_cube(u32 target) {
  return target == kCube;
}

bool has_layers(u32 target) {
  return target == kArray2d;
}

void require_opengl() {
  gl();
}

BufferAccess::BufferAccess(u32 name) {
  require(name != 0 && gl().is_buffer(name) != 0);
  before_ = get(kCopyReadBuffer);
  gl().bind_buffer(kCopyReadBuffer, name);
  GLint64 bytes = 0;
  GLint64 mapped = 0;
  gl().get_buffer_integer(kCopyReadBuffer, kBufferSize, &bytes);
  gl().get_buffer_integer(kCopyReadBuffer, kBufferMapped, &mapped);
  bytes_ = static_cast<u64>(bytes);
  if (bytes != 0 && mapped == 0) return;
  gl().bind_buffer(kCopyReadBuffer, before_);
  fail(bytes == 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_ERROR_MAP_FAILED);
}

BufferAccess::~BufferAccess() {
  gl().bind_buffer(kCopyReadBuffer, before_);
}

void BufferAccess::read(void* to) {
  const void* const from = gl().map_buffer(kCopyReadBuffer, 0, static_cast<GLsizeiptr>(bytes_), kMapRead);
  require(from != nullptr, CUDA_ERROR_MAP_FAILED);
  std::memcpy(to, from, bytes_);
  gl().unmap_buffer(kCopyReadBuffer);
}

void BufferAccess::write(const void* from) {
  void* const to =
      gl().map_buffer(kCopyReadBuffer, 0, static_cast<GLsizeiptr>(bytes_), kMapWrite | kMapInvalidateRange);
  require(to != nullptr, CUDA_ERROR_UNMAP_FAILED);
  std::memcpy(to, from, bytes_);
  gl().unmap_buffer(kCopyReadBuffer);
}

ImageAccess::ImageAccess(u32 name, u32 target) : target_(target) {
  const u32 binding = binding_of(target);
  require(name != 0 && gl().is_texture(name) != 0);
  before_ = get(binding);
  gl().bind_texture(target, name);
  if (get(binding) == name) return;
  gl().get_error();  // of a texture of another kind; ours, not the program's
  fail(CUDA_ERROR_INVALID_VALUE);
}

ImageAccess::~ImageAccess() {
  gl().bind_texture(target_, before_);
}

Image ImageAccess::describe() const {
  const u32 target = is_cube(target_) ? kCubeFirstFace : target_;
  const auto ask = [&](u32 level, u32 what) {
    GLint value = 0;
    gl().get_level(target, static_cast<GLint>(level), what, &value);
    return static_cast<u32>(value);
  };
  Image image;
  const u32 format = ask(0, kInternalFormat);
  const auto found = std::ranges::find(kLayouts, format, &PixelLayout::internal_format);
  require(found != std::end(kLayouts));
  image.pixels = *found;
  const u32 levels = target_ == kRectangle ? 1 : kMostLevels;
  for (u32 level = 0; level < levels; ++level) {
    const ImageLevel size{ask(level, kWidth), ask(level, kHeight), ask(level, kDepth)};
    if (size.width == 0 || size.height == 0 || size.depth == 0) break;
    image.levels.push_back(size);
  }
  require(!image.levels.empty());
  return image;
}

void ImageAccess::read(const PixelLayout& pixels, u32 level, u32 face, void* to) {
  const PlainPixels plain(true);
  gl().get_image(is_cube(target_) ? kCubeFirstFace + face : target_, static_cast<GLint>(level), pixels.format,
                 pixels.type, to);
}

void ImageAccess::write(const PixelLayout& pixels, const ImageLevel& size, u32 level, u32 face,
                        const void* from) {
  const PlainPixels plain(false);
  const auto width = static_cast<GLsizei>(size.width);
  const auto height = static_cast<GLsizei>(size.height);
  if (target_ == kTexture3d || target_ == kArray2d)
    gl().set_image_3d(target_, static_cast<GLint>(level), 0, 0, 0, width, height,
                      static_cast<GLsizei>(size.depth), pixels.format, pixels.type, from);
  else
    gl().set_image_2d(is_cube(target_) ? kCubeFirstFace + face : target_, static_cast<GLint>(level), 0, 0,
                      width, height, pixels.format, pixels.type, from);
}

}  // namespace gpupool::softgpu
