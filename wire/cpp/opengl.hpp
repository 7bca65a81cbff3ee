// What is particular to a session of OpenGL (Hello::kind), beside Hello and Welcome.
//
// After an `ok` Welcome, over a unix socket: the client sends one byte with the descriptor of the program's
// own connection (SCM_RIGHTS), and the renderer speaks with the program there. This connection then carries
// nothing but, perhaps, one text of the renderer's when it ends the session: why. Over every other transport:
// the program's own bytes, both ways, version 0 of the vtest protocol.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kMostNotice = 500;  // bytes of that text

}  // namespace gpupool::wire
