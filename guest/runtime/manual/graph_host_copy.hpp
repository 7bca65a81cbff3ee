// Copies in graphs from and to memory that only this process has: pageable memory, and over a stream
// transport pinned memory as well. The node works on a piece of the window; a launch fills the pieces that
// are read and, once it has run, copies out those that are written. So such a launch first waits for its
// stream, and returns when it has run if it writes to such memory.
#pragma once

#include <memory>

#include "guest/runtime/manual/copy_box.hpp"
#include "guest/runtime/manual/copy_parts.hpp"
#include "guest/runtime/session.hpp"

namespace gpupool::guest {

struct GraphContents;

// One host side of one copy. The window's memory goes back with the last graph that has the node.
struct GraphPiece {
  Bulk bulk;
  BoxSide side;  // of the program's memory
  Part box;
  bool to_host = false;

  GraphPiece() = default;
  GraphPiece(const GraphPiece&) = delete;
  GraphPiece& operator=(const GraphPiece&) = delete;
  ~GraphPiece();
};

// Whether a copy from or to these bytes needs a piece, or may name the memory as it is.
bool needs_graph_piece(const void* host, u64 bytes);
// Null, with the error, when the window is full.
std::shared_ptr<GraphPiece> make_graph_piece(const BoxSide& side, u64 width_bytes, u64 height, u64 depth,
                                             bool to_host, CUresult& error);
// The piece that begins at this offset of the window, or null.
std::shared_ptr<GraphPiece> find_graph_piece(u64 offset);

// Around a launch of a graph with pieces.
CUresult fill_graph_pieces(const GraphContents& contents, Stream& stream);
CUresult empty_graph_pieces(const GraphContents& contents, Stream& stream);

}  // namespace gpupool::guest
