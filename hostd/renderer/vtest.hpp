// The protocol that Mesa's virpipe driver speaks ("vtest"), as far as it is served here: versions 0 and 2.
// Little-endian words; a header, then its payload. From virglrenderer's vtest_protocol.h (MIT): numbers only.
//
// Two things are not as the header says. A create_renderer's length counts bytes. The payload behind a
// transfer_put is exactly Transfer::bytes long, while its header counts it in whole words; a transfer_put2's
// header counts data that never comes.
//
// A client asks with `ping` whether the server knows versions at all, followed at once by a busy_wait. Who
// leaves the ping unanswered is version 0: all data travels in the stream. Version 2 passes a descriptor of
// shared memory for each resource, so it needs the program's own socket.
#pragma once

#include "wire/cpp/types.hpp"

namespace gpupool::renderer {

enum class Command : u32 {
  get_caps = 1,
  create = 2,
  unref = 3,
  transfer_get = 4,
  transfer_put = 5,
  submit = 6,
  busy_wait = 7,
  create_renderer = 8,
  get_caps2 = 9,
  ping = 10,
  version = 11,
  create2 = 12,
  transfer_get2 = 13,
  transfer_put2 = 14,
};

inline constexpr u32 kSharedVersion = 2;

struct Header {
  u32 length = 0;  // of the payload, in words
  Command command{};
};
static_assert(sizeof(Header) == 8);

struct CreateWords {
  u32 handle, target, format, bind, width, height, depth, array_size, last_level, samples;
};
static_assert(sizeof(CreateWords) == 40);

struct Create2Words {
  CreateWords resource;
  u32 bytes;  // of shared memory; 0: none, as for multisampled textures
};
static_assert(sizeof(Create2Words) == 44);

struct TransferWords {
  u32 handle, level, stride, layer_stride, x, y, z, width, height, depth, bytes;
};
static_assert(sizeof(TransferWords) == 44);

struct Transfer2Words {
  u32 handle, level, x, y, z, width, height, depth, bytes, offset;
};
static_assert(sizeof(Transfer2Words) == 40);

struct BusyWaitWords {
  u32 handle, flags;
};
inline constexpr u32 kBusyWaitWaits = 1;

// The first word of each command in a submitted buffer: number, kind of object, words that follow.
struct StreamCommand {
  u8 number = 0;
  u8 object = 0;
  u16 words = 0;
};
static_assert(sizeof(StreamCommand) == 4);
inline constexpr u8 kGetQueryResult = 21;
inline constexpr u8 kCreateSubContext = 29;
inline constexpr u8 kDestroySubContext = 30;
inline constexpr u8 kCreateInStream = 48;  // makes a resource that nobody would have charged
inline constexpr u8 kTypeInStream = 49;
inline constexpr u8 kLastKnown = 52;  // behind it come video codecs

}  // namespace gpupool::renderer
