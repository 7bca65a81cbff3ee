// OpenGL's bytes through the window that a virtual machine shares with its host (wire/cpp/byte_rings.hpp).
#pragma once

#include "guest/opengl/pump.hpp"
#include "wire/cpp/byte_rings.hpp"

namespace gpupool::guest::opengl {

// As pump() does, between a program's socket and the slot; on `bells`, the connection to the host, each byte
// says that there is something to look at. Ends with the program or with the connection. The host leaves when
// all that it wrote has been passed on, and nothing is read or written after its end: the slot is another
// session's then. Where it wrote what cannot be, it has ended.
FirstEnd pump_window(int program, int bells, const wire::ByteRings& rings);

}  // namespace gpupool::guest::opengl
