// Commands whose client's side is more than a message: what the client knows itself, errors, strings.
#include <algorithm>
#include <cstring>
#include <iterator>

#include "gl_client.hpp"
#include "guest/egl/context.hpp"

namespace gpupool::guest::gl_api {
namespace {

wire::PixelStore* store_of(Context& context, GLenum name) {
  const bool packs = name >= GL_PACK_SWAP_BYTES && name <= GL_PACK_ALIGNMENT;
  return packs || name == GL_PACK_SKIP_IMAGES || name == GL_PACK_IMAGE_HEIGHT ? &context.pack
                                                                              : &context.unpack;
}

i32* field_of(wire::PixelStore& store, GLenum name) {
  switch (name) {
    case GL_PACK_ALIGNMENT:
    case GL_UNPACK_ALIGNMENT:
      return &store.alignment;
    case GL_PACK_ROW_LENGTH:
    case GL_UNPACK_ROW_LENGTH:
      return &store.row_length;
    case GL_PACK_IMAGE_HEIGHT:
    case GL_UNPACK_IMAGE_HEIGHT:
      return &store.image_height;
    case GL_PACK_SKIP_PIXELS:
    case GL_UNPACK_SKIP_PIXELS:
      return &store.skip_pixels;
    case GL_PACK_SKIP_ROWS:
    case GL_UNPACK_SKIP_ROWS:
      return &store.skip_rows;
    case GL_PACK_SKIP_IMAGES:
    case GL_UNPACK_SKIP_IMAGES:
      return &store.skip_images;
    default:
      return nullptr;
  }
}

bool is_alignment(GLenum name) {
  return name == GL_PACK_ALIGNMENT || name == GL_UNPACK_ALIGNMENT;
}

constexpr GLsizeiptr kPiece = 2 << 20;

template <typename Send>
void in_pieces(GLsizeiptr size, const void* data, Send send) {
  if (size <= kPiece || data == nullptr) return send(0, size, data);
  for (GLsizeiptr from = 0; from < size; from += kPiece)
    send(from, std::min(kPiece, size - from), static_cast<const u8*>(data) + from);
}

// The driver's answer, asked for once a context.
const std::string& text_of(Context& context, GLenum name) {
  const auto found = context.texts.find(name);
  if (found != context.texts.end()) return found->second;
  std::string& text = context.texts[name];
  auto* const a = context.begin<wire::gl_args::GetString>(wire::GlFunction::glGetString);
  a->name = name;
  context.ask_large(name == GL_EXTENSIONS ? 1u << 16 : 2048, [&](const u8* data, u64 size) {
    text.assign(reinterpret_cast<const char*>(data), size);
  });
  return text;
}

// The driver's extensions that need nothing which is unsupported here.
const std::vector<std::string>& extensions_of(Context& context) {
  if (!context.extensions.empty()) return context.extensions;
  const std::string& text = text_of(context, GL_EXTENSIONS);
  for (size_t start = 0; start < text.size();) {
    const size_t end = std::min(text.find('\n', start), text.size());
    std::string name = text.substr(start, end - start);
    const auto allowed = std::ranges::lower_bound(
        kExtensions, name.c_str(), [](const char* a, const char* b) { return std::strcmp(a, b) < 0; });
    if (allowed != kExtensions.end() && name == *allowed) context.extensions.push_back(std::move(name));
    start = end + 1;
  }
  return context.extensions;
}

// glGet of a fact: once a context, then from memory. `ask` writes what the driver answers.
template <typename T, typename Ask>
void get_fact(Context& context, GLenum name, T* data, Ask ask) {
  constexpr u32 kFloat = std::is_floating_point_v<T> ? 0x8000'0000u : 0;
  if (!std::ranges::binary_search(kConstants, name)) return ask(data);
  std::vector<u8>& kept = context.facts[name | kFloat];
  if (kept.empty()) {
    // More than any of them has. What the driver does not write stays as the program had it.
    constexpr u64 kMost = 16;
    T before[kMost];
    T values[kMost];
    std::memset(before, 0x5b, sizeof before);
    std::memcpy(values, before, sizeof before);
    ask(values);
    u64 count = kMost;
    while (count > 0 && std::memcmp(&values[count - 1], &before[count - 1], sizeof(T)) == 0) --count;
    if (count == 0) return;
    const auto* const bytes = reinterpret_cast<const u8*>(values);
    kept.assign(bytes, bytes + count * sizeof(T));
  }
  std::memcpy(data, kept.data(), kept.size());
}

}  // namespace

void glPixelStorei(GLenum pname, GLint param) {
  Context* const context = current_context();
  if (context == nullptr) return;
  // As the driver: only a legal value is taken.
  i32* const field = field_of(*store_of(*context, pname), pname);
  const bool legal = is_alignment(pname) ? param == 1 || param == 2 || param == 4 || param == 8 : param >= 0;
  if (field != nullptr && legal) *field = param;
  plain::glPixelStorei(pname, param);
}
void glPixelStoref(GLenum pname, GLfloat param) {
  glPixelStorei(pname, static_cast<GLint>(param));
}

void glBindBuffer(GLenum target, GLuint buffer) {
  Context* const context = current_context();
  if (context == nullptr) return;
  context->bindings[target] = buffer;
  if (target == GL_PIXEL_PACK_BUFFER) context->pack_buffer = buffer;
  if (target == GL_PIXEL_UNPACK_BUFFER) context->unpack_buffer = buffer;
  if (target == GL_ELEMENT_ARRAY_BUFFER && context->arrays.vertex_array == 0)
    context->arrays.elements = buffer;
  plain::glBindBuffer(target, buffer);
}

void glDeleteBuffers(GLsizei n, const GLuint* buffers) {
  Context* const context = current_context();
  if (context == nullptr) return;
  for (GLsizei i = 0; buffers != nullptr && i < n; ++i) {
    if (buffers[i] == context->pack_buffer) context->pack_buffer = 0;
    if (buffers[i] == context->unpack_buffer) context->unpack_buffer = 0;
    if (buffers[i] == context->arrays.elements) context->arrays.elements = 0;
    for (auto& [target, bound] : context->bindings)
      if (bound == buffers[i]) bound = 0;
    std::erase_if(context->mappings, [&](const auto& each) { return each->buffer == buffers[i]; });
  }
  plain::glDeleteBuffers(n, buffers);
}

// Much goes in pieces: they use memory of the window that is there already, and the worker copies one while
// we copy the next. A range beyond the buffer is refused whole, as long as its first piece is beyond it, too.
void glBufferSubData(GLenum target, GLintptr offset, GLsizeiptr size, const void* data) {
  in_pieces(size, data, [&](GLsizeiptr from, GLsizeiptr bytes, const void* piece) {
    plain::glBufferSubData(target, offset + from, bytes, piece);
  });
}
void glNamedBufferSubData(GLuint buffer, GLintptr offset, GLsizeiptr size, const void* data) {
  in_pieces(size, data, [&](GLsizeiptr from, GLsizeiptr bytes, const void* piece) {
    plain::glNamedBufferSubData(buffer, offset + from, bytes, piece);
  });
}
void glBufferData(GLenum target, GLsizeiptr size, const void* data, GLenum usage) {
  const bool much = data != nullptr && size > kPiece;
  plain::glBufferData(target, size, much ? nullptr : data, usage);
  if (much) glBufferSubData(target, 0, size, data);
}
void glNamedBufferData(GLuint buffer, GLsizeiptr size, const void* data, GLenum usage) {
  const bool much = data != nullptr && size > kPiece;
  plain::glNamedBufferData(buffer, size, much ? nullptr : data, usage);
  if (much) glNamedBufferSubData(buffer, 0, size, data);
}

void glShaderSource(GLuint shader, GLsizei count, const GLchar* const* string, const GLint* length) {
  Context* const context = current_context();
  if (context == nullptr) return;
  if (count < 0 || string == nullptr) return context->fail(GL_INVALID_VALUE);
  auto* const a = context->begin<wire::gl_args::ShaderSource>(wire::GlFunction::glShaderSource);
  a->shader = shader;
  a->count = count;
  a->string_count = static_cast<u64>(count);
  context->strings(string, length, static_cast<u64>(count));
  context->end(false);
}

// The first error that this side has found, then the driver's. Where nothing was sent since the driver last
// said that there is none, it is not asked again.
GLenum glGetError() {
  Context* const context = current_context();
  if (context == nullptr) return GL_NO_ERROR;
  if (const GLenum error = context->take_error(); error != GL_NO_ERROR) return error;
  if (context->untouched()) return GL_NO_ERROR;
  const GLenum error = plain::glGetError();
  if (error == GL_NO_ERROR) context->no_error();
  return error;
}

const GLubyte* glGetString(GLenum name) {
  Context* const context = current_context();
  if (context == nullptr) return nullptr;
  if (name == GL_EXTENSIONS) {
    // Core contexts refuse it; those of OpenGL ES have it.
    const std::string& version = text_of(*context, GL_VERSION);
    if (!version.starts_with("OpenGL ES")) {
      context->fail(GL_INVALID_ENUM);
      return nullptr;
    }
    std::string& joined = context->texts[GL_NUM_EXTENSIONS];
    if (joined.empty())
      for (const std::string& each : extensions_of(*context)) joined += each + " ";
    return reinterpret_cast<const GLubyte*>(joined.c_str());
  }
  if (name != GL_VENDOR && name != GL_RENDERER && name != GL_VERSION && name != GL_SHADING_LANGUAGE_VERSION) {
    context->fail(GL_INVALID_ENUM);
    return nullptr;
  }
  const std::string& text = text_of(*context, name);
  return text.empty() ? nullptr : reinterpret_cast<const GLubyte*>(text.c_str());
}

const GLubyte* glGetStringi(GLenum name, GLuint index) {
  Context* const context = current_context();
  if (context == nullptr) return nullptr;
  if (name != GL_EXTENSIONS) {
    context->fail(GL_INVALID_ENUM);
    return nullptr;
  }
  const std::vector<std::string>& all = extensions_of(*context);
  if (index >= all.size()) {
    context->fail(GL_INVALID_VALUE);
    return nullptr;
  }
  return reinterpret_cast<const GLubyte*>(all[index].c_str());
}

void glGetIntegerv(GLenum pname, GLint* data) {
  Context* const context = current_context();
  if (context == nullptr || data == nullptr) return;
  if (pname == GL_NUM_EXTENSIONS) {
    *data = static_cast<GLint>(extensions_of(*context).size());
    return;
  }
  // There is no glProgramBinary.
  if (pname == GL_NUM_PROGRAM_BINARY_FORMATS) {
    *data = 0;
    return;
  }
  get_fact(*context, pname, data, [&](GLint* out) { plain::glGetIntegerv(pname, out); });
}

void glGetFloatv(GLenum pname, GLfloat* data) {
  Context* const context = current_context();
  if (context == nullptr || data == nullptr) return;
  get_fact(*context, pname, data, [&](GLfloat* out) { plain::glGetFloatv(pname, out); });
}

void glFlush() {
  Context* const context = current_context();
  if (context == nullptr) return;
  plain::glFlush();
  context->flush();
}

void glFinish() {
  Context* const context = current_context();
  if (context == nullptr) return;
  context->begin<wire::gl_args::Finish>(wire::GlFunction::glFinish);
  context->ask(0);
}

// No driver's message is forwarded: a callback that is never called is what a context without debug output
// may do (OpenGL 4.6, 20.1).
void glDebugMessageCallback(GLDEBUGPROC, const void*) {}

}  // namespace gpupool::guest::gl_api
