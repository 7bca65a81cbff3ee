// OpenGL's bytes through the window that a virtual machine shares with its host (wire/cpp/byte_rings.hpp).
#pragma once

#include "guest/opengl/pump.hpp"
#include "wire/cpp/byte_rings.hpp"

namespace gpupool::guest::opengl {

// As pump() does, between a program's socket and the slot; on `bells`, the connection to the host, each byte
// says that there is something to look at. Ends with the program or with the connection. What the host wrote
// before it left is still passed on; where it wrote what cannot be, it has ended.
FirstEnd pump_window(int program, int bells, const wire::ByteRings& rings);

}  // namespace gpupool::guest::opengl
