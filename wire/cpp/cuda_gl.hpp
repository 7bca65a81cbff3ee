// The types of cudaGL.h, which itself needs OpenGL's headers. By the names that it gives them.
#pragma once

#include "wire/cpp/types.hpp"

// NOLINTBEGIN(readability-identifier-naming): NVIDIA's and Khronos' names
using GLuint = gpupool::u32;
using GLenum = gpupool::u32;
using CUGLDeviceList = gpupool::u32;
// NOLINTEND(readability-identifier-naming)
