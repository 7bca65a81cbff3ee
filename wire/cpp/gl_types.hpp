// OpenGL's types, as both ends use them. Names and sizes are those of the Khronos registry (gl.xml, <types>).
// Depends on no system header: neither end needs OpenGL to be installed where it is built.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::gl {

using GLenum = u32;
using GLbitfield = u32;
using GLboolean = u8;
using GLubyte = u8;
using GLbyte = std::int8_t;
using GLchar = char;
using GLshort = std::int16_t;
using GLushort = u16;
using GLint = i32;
using GLsizei = i32;
using GLuint = u32;
using GLfloat = float;
using GLdouble = double;
using GLint64 = i64;
using GLuint64 = u64;
using GLintptr = std::ptrdiff_t;
using GLsizeiptr = std::ptrdiff_t;
using GLsync = void*;
using GLDEBUGPROC = void (*)(GLenum source, GLenum type, GLuint id, GLenum severity, GLsizei length,
                             const GLchar* message, const void* user);

}  // namespace gpupool::gl
