// The first bytes on a connection, before the window exists. Fixed little-endian structs, the same over a
// unix socket and over a stream transport. The client sends Hello; hostd checks it and starts a worker that
// owns the connection from then on; the worker (or hostd, to refuse) answers with Welcome. On shared memory
// the Welcome carries the window's memfd as SCM_RIGHTS. hostd's Python twin of these structs is
// wire/hello.py; tests/test_hello.py holds the two together.
#pragma once

#include <type_traits>

#include "wire/cpp/types.hpp"

namespace gpupool::wire {

inline constexpr u32 kHelloMagic = 0x4c4f'4f50;    // "POOL"
inline constexpr u32 kWelcomeMagic = 0x4c4f'4f57;  // "WOOL"
inline constexpr u32 kLaneMagic = 0x454e'414c;     // "LANE"
inline constexpr u16 kProtocolMajor = 1;           // differs: refused, both versions named
inline constexpr u16 kProtocolMinor = 2;           // a client one minor behind its host is served
inline constexpr u32 kMaxLanes = 15;               // connections of a session besides its first
inline constexpr u32 kNonceBytes = 16;

// `window` is no way to dial: a virtual machine's client says vsock, and its session is one over the window
// if it can map that (Hello::window_bits) and the host has a piece of it left (WelcomeWindow).
enum class TransportKind : u32 { shm = 1, tcp = 2, vsock = 3, rdma = 4, tls = 5, window = 6 };

// What the session is for.
enum class SessionKind : u16 { cuda = 0, opengl = 1 };

enum class WelcomeStatus : u32 {
  ok = 0,
  version = 1,      // protocol versions do not fit
  token = 2,        // missing or wrong token
  no_device = 3,    // the host has no GPU to give
  limit = 4,        // sessions, memory or share exhausted; the text says which
  base_taken = 5,   // the proposed window base is occupied in the worker: propose another
  worker = 6,       // the worker could not start; the text says why
  bad_request = 7,  // the Hello itself is malformed
  waiting = 8,      // not the last word: the text says where the client stands, another Welcome follows
};

struct Hello {
  u32 magic = kHelloMagic;
  u16 protocol_major = kProtocolMajor;
  u16 protocol_minor = kProtocolMinor;
  u32 bytes = 0;  // sizeof(Hello): a later minor version may append
  TransportKind transport = TransportKind::shm;
  u64 window_base = 0;
  u32 pid = 0;              // in the client's own pid namespace, for logs only
  u32 compute_percent = 0;  // 0: whatever the host's default is
  u32 memory_mib = 0;       // 0: likewise
  u32 cuda_version = 0;     // CUDA version that the guest runtime was generated for, e.g. 13000
  char client_version[32] = {};
  char program[64] = {};  // comm of the client, for `gpupool status`
  u8 token[64] = {};      // text, zero padded; all zero where the endpoint needs none
  // Since 1.1.
  u8 nonce[kNonceBytes] = {};  // which lanes are this session's
  u32 lanes = 0;               // how many there are; 0: nonce means nothing
  SessionKind kind = SessionKind::cuda;
  u16 window_bits = 0;  // it can map its machine's window, of so many address bits; 0: it cannot
  // Since 1.2.
  u32 policy = 0;      // SharePolicy of hostd/pages/quota_page.hpp
  u32 wait_s = 0;      // how long it would wait for room; 0: it would not
  char vgpu[64] = {};  // name of a vGPU that the host has; "~KEY": the one of all processes that say this KEY
};
static_assert(std::is_trivially_copyable_v<Hello> && sizeof(Hello) == 296);

// The first bytes on a further connection of a session, a lane (lanes.hpp). Lanes come before the Hello on
// the session's main connection, from the same peer, and are held for it for as long as a Hello may take.
struct LaneHello {
  u32 magic = kLaneMagic;
  u16 protocol_major = kProtocolMajor;
  u16 protocol_minor = kProtocolMinor;
  u32 bytes = 0;
  u32 index = 0;               // from 0
  u8 nonce[kNonceBytes] = {};  // random, the Hello's
  u8 token[64] = {};
};
static_assert(std::is_trivially_copyable_v<LaneHello> && sizeof(LaneHello) == 96);

struct Welcome {
  u32 magic = kWelcomeMagic;
  u16 protocol_major = kProtocolMajor;
  u16 protocol_minor = kProtocolMinor;
  u32 bytes = 0;
  WelcomeStatus status = WelcomeStatus::ok;
  u64 window_bytes = 0;
  u64 session_id = 0;
  u32 driver_version = 0;  // of the host's libcuda
  u32 device_count = 0;
  char host_version[32] = {};
  char text[256] = {};  // the reason, for people, when status is not ok
};
static_assert(std::is_trivially_copyable_v<Welcome> && sizeof(Welcome) == 328);

// Follows an `ok` Welcome, and is counted in its `bytes`, where the Hello had lanes.
struct WelcomeLanes {
  u32 count = 0;  // the first so many are used; the host has let go of the others
  u32 reserved = 0;
};
static_assert(sizeof(WelcomeLanes) == 8);

// Follows both, and is counted in `bytes`, where the session has a piece of the machine's window: this offset
// in it, and Welcome::window_bytes. On the connection itself there is then nothing but bells, single bytes
// without a meaning: each says "look at the window" to a side that sleeps.
struct WelcomeWindow {
  u64 offset = 0;
  u64 reserved = 0;
};
static_assert(sizeof(WelcomeWindow) == 16);

// What the guest agent sends, with the window's descriptor as SCM_RIGHTS, to whoever connects to its socket.
inline constexpr u32 kWindowOfferMagic = 0x574f'4457;  // "WDOW"
struct WindowOffer {
  u32 magic = kWindowOfferMagic;
  u32 reserved = 0;
  u64 bytes = 0;
};
static_assert(std::is_trivially_copyable_v<WindowOffer> && sizeof(WindowOffer) == 16);

}  // namespace gpupool::wire
