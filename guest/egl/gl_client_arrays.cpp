// Vertices and indices that lie in the program's own memory. OpenGL ES has them in vertex array 0; the core
// profile does not. Which memory a draw needs is known only when it draws: then it goes into buffers of the
// context's own, the attributes point there, and the driver sees an ordinary draw. Nothing of it crosses as
// an address.
#include <algorithm>
#include <bit>
#include <vector>

#include "gl_client.hpp"
#include "guest/egl/context.hpp"

namespace gpupool::guest::gl_api {
namespace {

using Attribute = ClientArrays::Attribute;

u64 bytes_of_one(GLenum type) {
  switch (type) {
    case GL_BYTE:
    case GL_UNSIGNED_BYTE:
      return 1;
    case GL_SHORT:
    case GL_UNSIGNED_SHORT:
    case GL_HALF_FLOAT:
    case 0x8D61:  // GL_HALF_FLOAT_OES
      return 2;
    case GL_FLOAT:
    case GL_INT:
    case GL_UNSIGNED_INT:
    case GL_FIXED:
      return 4;
    default:
      return 0;
  }
}

u64 bytes_of(const Attribute& attribute) {
  if (attribute.type == GL_INT_2_10_10_10_REV || attribute.type == GL_UNSIGNED_INT_2_10_10_10_REV) return 4;
  return bytes_of_one(attribute.type) * static_cast<u64>(attribute.size);
}

u64 stride_of(const Attribute& attribute) {
  return attribute.stride == 0 ? bytes_of(attribute) : static_cast<u64>(attribute.stride);
}

// The driver's number of attributes, asked for once a context.
u32 attributes_there() {
  GLint most = 0;
  glGetIntegerv(GL_MAX_VERTEX_ATTRIBS, &most);
  return static_cast<u32>(most);
}

// Takes note of an attribute. True when it is the program's own memory, and there is nothing to send.
bool keep(Context& context, u32 index, const Attribute& given) {
  ClientArrays& arrays = context.arrays;
  if (!arrays.possible || arrays.vertex_array != 0) return false;
  const bool there = index < ClientArrays::kMost && index < attributes_there();
  const u32 bit = there ? 1u << index : 0;
  const auto bound = context.bindings.find(GL_ARRAY_BUFFER);
  if (given.pointer == nullptr || (bound != context.bindings.end() && bound->second != 0)) {
    arrays.ours &= ~bit;
    return false;
  }
  // As the driver, which does not see this call.
  if (!there || given.size < 1 || given.size > 4 || given.stride < 0) {
    context.fail(GL_INVALID_VALUE);
    return true;
  }
  if (bytes_of(given) == 0) {
    context.fail(GL_INVALID_ENUM);
    return true;
  }
  const u32 divisor = arrays.attributes[index].divisor;
  arrays.attributes[index] = given;
  arrays.attributes[index].divisor = divisor;
  arrays.ours |= bit;
  return true;
}

void bind_vertices(Context& context, u32 buffer) {
  context.bindings[GL_ARRAY_BUFFER] = buffer;
  plain::glBindBuffer(GL_ARRAY_BUFFER, buffer);
}

// What a draw reads: vertices first to last, and instances 0 to the last.
struct Span {
  u64 first = 0, last = 0, instances = 1;
};

// Attributes that lie in one another, as in an array of structs: their memory goes up once.
struct Region {
  const u8* start = nullptr;
  const u8* end = nullptr;  // of the first element
  u64 stride = 0, first = 0, last = 0;
  u64 offset = 0;  // in the buffer
  u32 attributes = 0;
  [[nodiscard]] u64 bytes() const { return last * stride + static_cast<u64>(end - start); }
};

std::vector<Region> regions_of(const ClientArrays& arrays, const Span& span) {
  std::vector<Region> found;
  for (u32 bits = arrays.ours & arrays.enabled; bits != 0; bits &= bits - 1) {
    const auto index = static_cast<u32>(std::countr_zero(bits));
    const Attribute& each = arrays.attributes[index];
    const bool stepped = each.divisor != 0;
    Region region{each.pointer,
                  each.pointer + bytes_of(each),
                  stride_of(each),
                  stepped ? 0 : span.first,
                  stepped ? (span.instances - 1) / each.divisor : span.last,
                  0,
                  1u << index};
    const auto home = std::ranges::find_if(found, [&](const Region& other) {
      const u8* const start = std::min(other.start, region.start);
      const u8* const end = std::max(other.end, region.end);
      return other.stride == region.stride && other.last == region.last && other.first == region.first &&
             static_cast<u64>(end - start) <= region.stride;
    });
    if (home == found.end()) {
      found.push_back(region);
      continue;
    }
    home->start = std::min(home->start, region.start);
    home->end = std::max(home->end, region.end);
    home->attributes |= region.attributes;
  }
  return found;
}

// Puts the attributes' memory into the context's buffer and points them there.
void send_vertices(Context& context, const Span& span) {
  ClientArrays& arrays = context.arrays;
  std::vector<Region> regions = regions_of(arrays, span);
  if (regions.empty()) return;
  u64 total = 0;
  for (Region& region : regions) {
    region.offset = total;
    // The driver's elements lie at multiples of what the program's do.
    total = (total + region.bytes() + 15) / 16 * 16;
  }
  const u32 bound = context.bindings[GL_ARRAY_BUFFER];
  if (arrays.vertex_buffer == 0) glGenBuffers(1, &arrays.vertex_buffer);
  bind_vertices(context, arrays.vertex_buffer);
  glBufferData(GL_ARRAY_BUFFER, static_cast<GLsizeiptr>(total), nullptr, GL_STREAM_DRAW);
  for (const Region& region : regions) {
    const u64 skipped = region.first * region.stride;
    glBufferSubData(GL_ARRAY_BUFFER, static_cast<GLintptr>(region.offset + skipped),
                    static_cast<GLsizeiptr>(region.bytes() - skipped), region.start + skipped);
    for (u32 bits = region.attributes; bits != 0; bits &= bits - 1) {
      const auto index = static_cast<u32>(std::countr_zero(bits));
      const Attribute& each = arrays.attributes[index];
      // NOLINTNEXTLINE(performance-no-int-to-ptr): an offset, which OpenGL takes as a pointer
      const auto* const place =
          reinterpret_cast<const void*>(region.offset + static_cast<u64>(each.pointer - region.start));
      if (each.integer)
        plain::glVertexAttribIPointer(index, each.size, each.type, static_cast<i32>(region.stride), place);
      else
        plain::glVertexAttribPointer(index, each.size, each.type, each.normalized ? 1 : 0,
                                     static_cast<i32>(region.stride), place);
    }
  }
  bind_vertices(context, bound);
}

template <typename Index>
void reach(const void* indices, GLsizei count, bool restarts, Span& span) {
  const auto* const values = static_cast<const Index*>(indices);
  u64 low = ~u64{0};
  u64 high = 0;
  for (GLsizei i = 0; i < count; ++i) {
    if (restarts && values[i] == static_cast<Index>(~Index{0})) continue;
    low = std::min<u64>(low, values[i]);
    high = std::max<u64>(high, values[i]);
  }
  span.first = std::min(low, high);
  span.last = high;
}

template <typename Index>
void reach_of(const Context& context, const void* indices, GLsizei count, Span& span) {
  reach<Index>(indices, count, false, span);
  // The largest index may be no index. To ask costs a wait, so only then.
  if (span.last == static_cast<Index>(~Index{0}) && context.arrays.restarts &&
      glIsEnabled(GL_PRIMITIVE_RESTART_FIXED_INDEX) != 0)
    reach<Index>(indices, count, true, span);
}

void reach_of(const Context& context, GLenum type, const void* indices, GLsizei count, Span& span) {
  if (type == GL_UNSIGNED_BYTE) reach_of<u8>(context, indices, count, span);
  if (type == GL_UNSIGNED_SHORT) reach_of<u16>(context, indices, count, span);
  if (type == GL_UNSIGNED_INT) reach_of<u32>(context, indices, count, span);
}

// Whether a draw needs any of this: for the core profile and for vertex arrays with buffers one look.
bool from_memory(const Context* context, bool indexed) {
  if (context == nullptr || !context->arrays.possible || context->arrays.vertex_array != 0) [[likely]]
    return false;
  const ClientArrays& arrays = context->arrays;
  return (arrays.ours & arrays.enabled) != 0 || (indexed && arrays.elements == 0);
}

// Sends what a draw of elements reads. `draw` is called with the indices' place: an offset into a buffer.
template <typename Draw>
void draw_elements(GLsizei count, GLenum type, const void* indices, GLsizei instances, Draw draw) {
  Context* const context = current_context();
  if (!from_memory(context, true)) return draw(indices);
  ClientArrays& arrays = context->arrays;
  const u64 size = type == GL_UNSIGNED_BYTE    ? 1
                   : type == GL_UNSIGNED_SHORT ? 2
                   : type == GL_UNSIGNED_INT   ? 4
                                               : 0;
  if (count <= 0 || instances <= 0 || size == 0) return draw(nullptr);  // the driver says what is wrong
  const auto bytes = static_cast<GLsizeiptr>(static_cast<u64>(count) * size);
  Span span;
  span.instances = static_cast<u64>(instances);
  if (arrays.elements != 0) {
    // Indices in a buffer, vertices in memory: rare enough to fetch the indices back.
    const auto offset = static_cast<GLintptr>(reinterpret_cast<u64>(indices));
    const void* const seen = glMapBufferRange(GL_ELEMENT_ARRAY_BUFFER, offset, bytes, GL_MAP_READ_BIT);
    if (seen == nullptr) return context->fail(GL_INVALID_OPERATION);
    reach_of(*context, type, seen, count, span);
    glUnmapBuffer(GL_ELEMENT_ARRAY_BUFFER);
    send_vertices(*context, span);
    return draw(indices);
  }
  if (indices == nullptr) return context->fail(GL_INVALID_OPERATION);
  if ((arrays.ours & arrays.enabled) != 0) {
    reach_of(*context, type, indices, count, span);
    send_vertices(*context, span);
  }
  if (arrays.index_buffer == 0) glGenBuffers(1, &arrays.index_buffer);
  plain::glBindBuffer(GL_ELEMENT_ARRAY_BUFFER, arrays.index_buffer);
  glBufferData(GL_ELEMENT_ARRAY_BUFFER, bytes, indices, GL_STREAM_DRAW);
  draw(nullptr);
  plain::glBindBuffer(GL_ELEMENT_ARRAY_BUFFER, 0);
}

template <typename Draw>
void draw_arrays(GLint first, GLsizei count, GLsizei instances, Draw draw) {
  Context* const context = current_context();
  if (from_memory(context, false) && first >= 0 && count > 0 && instances > 0) {
    const auto begin = static_cast<u64>(first);
    send_vertices(*context, {begin, begin + static_cast<u64>(count) - 1, static_cast<u64>(instances)});
  }
  draw();
}

}  // namespace

void glVertexAttribPointer(GLuint index, GLint size, GLenum type, GLboolean normalized, GLsizei stride,
                           const void* pointer) {
  Context* const context = current_context();
  if (context == nullptr) return;
  const Attribute given{static_cast<const u8*>(pointer), type, size, stride, 0, normalized != 0, false};
  if (!keep(*context, index, given))
    plain::glVertexAttribPointer(index, size, type, normalized, stride, pointer);
}
void glVertexAttribIPointer(GLuint index, GLint size, GLenum type, GLsizei stride, const void* pointer) {
  Context* const context = current_context();
  if (context == nullptr) return;
  const Attribute given{static_cast<const u8*>(pointer), type, size, stride, 0, false, true};
  if (!keep(*context, index, given)) plain::glVertexAttribIPointer(index, size, type, stride, pointer);
}

void glVertexAttribDivisor(GLuint index, GLuint divisor) {
  Context* const context = current_context();
  if (context != nullptr && context->arrays.vertex_array == 0 && index < ClientArrays::kMost)
    context->arrays.attributes[index].divisor = divisor;
  plain::glVertexAttribDivisor(index, divisor);
}
void glEnableVertexAttribArray(GLuint index) {
  Context* const context = current_context();
  if (context != nullptr && context->arrays.vertex_array == 0 && index < ClientArrays::kMost)
    context->arrays.enabled |= 1u << index;
  plain::glEnableVertexAttribArray(index);
}
void glDisableVertexAttribArray(GLuint index) {
  Context* const context = current_context();
  if (context != nullptr && context->arrays.vertex_array == 0 && index < ClientArrays::kMost)
    context->arrays.enabled &= ~(1u << index);
  plain::glDisableVertexAttribArray(index);
}

void glBindVertexArray(GLuint array) {
  if (Context* const context = current_context(); context != nullptr) context->arrays.vertex_array = array;
  plain::glBindVertexArray(array);
}
void glDeleteVertexArrays(GLsizei n, const GLuint* arrays) {
  Context* const context = current_context();
  for (GLsizei i = 0; context != nullptr && arrays != nullptr && i < n; ++i)
    if (arrays[i] == context->arrays.vertex_array) context->arrays.vertex_array = 0;
  plain::glDeleteVertexArrays(n, arrays);
}

void glDrawArrays(GLenum mode, GLint first, GLsizei count) {
  draw_arrays(first, count, 1, [&] { plain::glDrawArrays(mode, first, count); });
}
void glDrawArraysInstanced(GLenum mode, GLint first, GLsizei count, GLsizei instancecount) {
  draw_arrays(first, count, instancecount,
              [&] { plain::glDrawArraysInstanced(mode, first, count, instancecount); });
}
void glDrawElements(GLenum mode, GLsizei count, GLenum type, const void* indices) {
  draw_elements(count, type, indices, 1,
                [&](const void* place) { plain::glDrawElements(mode, count, type, place); });
}
void glDrawElementsInstanced(GLenum mode, GLsizei count, GLenum type, const void* indices,
                             GLsizei instancecount) {
  draw_elements(count, type, indices, instancecount, [&](const void* place) {
    plain::glDrawElementsInstanced(mode, count, type, place, instancecount);
  });
}
void glDrawRangeElements(GLenum mode, GLuint start, GLuint end, GLsizei count, GLenum type,
                         const void* indices) {
  draw_elements(count, type, indices, 1,
                [&](const void* place) { plain::glDrawRangeElements(mode, start, end, count, type, place); });
}

}  // namespace gpupool::guest::gl_api
