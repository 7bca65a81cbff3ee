// What libcuda.so.1 gives to libEGL_gpupool.so in the same process: the session, since a program's CUDA and
// OpenGL are one session with one worker. One function finds it, by version; both libraries come from one
// build, so a version that differs is a mixture of two installations.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::guest {

inline constexpr u32 kPrivateTableVersion = 3;

// A piece of the window, given back when what used it has been executed.
struct WindowPiece {
  u64 offset = 0;
  u64 size = 0;
  u8* address = nullptr;
};

// A slot: its payload is at most wire::kInlineBytes, or lies in the piece (wire::kPayloadInBulk).
struct PrivateMessage {
  u16 function = 0;
  u16 flags = 0;
  u32 payload_bytes = 0;
  const void* payload = nullptr;
  u64 bulk_offset = 0;
  u64 bulk_size = 0;
  // wait(): where the piece's first bytes go, if the answer is that there are so many (a u64).
  void* copy_to = nullptr;
  u64 copy_bytes = 0;
};

// Sends what this thread's context of OpenGL has gathered; the context's index, 0 for none.
using FlushCurrent = u32 (*)();

// Results are CUresult.
struct PrivateTable {
  u32 version = kPrivateTableVersion;
  u32 bytes = sizeof(PrivateTable);
  i32 (*connect)() = nullptr;
  i32 (*send)(const PrivateMessage& message, u64& ticket) = nullptr;
  // `answer` gets at most `room` bytes of what came into the reply box, `size` how many.
  i32 (*wait)(const PrivateMessage& message, u64& ticket, void* answer, u32 room, u32& size) = nullptr;
  bool (*take)(u64 bytes, WindowPiece& piece) = nullptr;
  void (*give_back)(const WindowPiece& piece, u64 ticket) = nullptr;
  // Whether the worker has executed everything that was sent.
  bool (*idle)() = nullptr;
  // Once, before the first context: what cuGraphicsGL* ask (manual/graphics_resource.cpp).
  void (*use_opengl)(FlushCurrent flush) = nullptr;
  // As memcpy, by several threads where that is faster.
  void (*copy)(void* to, const void* from, u64 bytes) = nullptr;
};

// What use_opengl() was given, or null.
FlushCurrent opengl_of_program();

inline constexpr char kPrivateTableName[] = "gpupool_private_table";
using FindPrivateTable = const PrivateTable* (*)(u32 version);

}  // namespace gpupool::guest
