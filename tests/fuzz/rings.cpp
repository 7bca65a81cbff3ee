// Target: the renderer's end of a slot in a virtual machine's window (hostd/renderer/window.hpp), by a guest
// that keeps to the rings for a while, and then writes what it likes where it likes.
//
// What must hold: what an honest guest wrote comes out in order, and what it is sent goes in in order; of the
// slot the renderer changes its own half and its own counters alone; counters that cannot be end the session;
// a guest that has left is waited for no longer.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <vector>

#include "hostd/renderer/window.hpp"
#include "wire/cpp/byte_rings.hpp"
#include "wire/cpp/reader.hpp"

using namespace gpupool;

namespace {

constexpr u64 kEach = 1024;  // small, so that the rings are full and come round again
constexpr u64 kSlot = wire::kByteRingsPage + 2 * kEach;

void require(bool holds) {
  if (!holds) std::abort();
}

// The byte at that place of a stream.
u8 byte_at(u64 place) {
  return static_cast<u8>((place * 2654435761u) >> 16);
}

// The input, a value at a time; zeros when it has ended.
class Input {
 public:
  Input(const u8* data, size_t size) : rest_(data, size) {}
  [[nodiscard]] bool ended() const { return rest_.empty(); }
  template <typename T>
  T take() {
    T value{};
    const size_t count = std::min(sizeof value, rest_.size());
    std::memcpy(&value, rest_.data(), count);
    rest_ = rest_.subspan(count);
    return value;
  }

 private:
  std::span<const u8> rest_;
};

class World {
 public:
  World() { require(rings_.capacity == kEach); }
  ~World() {
    leave();
    close(bells_[1]);
  }
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // False when the session is over.
  bool step(Input& input) {
    const auto what = input.take<u8>();
    const u64 count = input.take<u16>() % (2 * kEach);
    const Guests before = guests();
    bool goes_on = true;
    try {
      switch (what % 8) {
        case 0:
          return put(count);
        case 1:
          return get(count);
        case 2:
          return lie(count % 6, input.take<u64>(), (what & 8) != 0);
        case 3:
          return scribble(count, input.take<u64>());
        case 4:
          goes_on = host_reads(count);
          break;
        case 5:
          goes_on = host_writes(count);
          break;
        case 6:
          goes_on = !host_.ended();
          break;
        default:
          host_.finish(0);
      }
    } catch (const wire::ProtocolError&) {
      require(!honest_);
      goes_on = false;
    }
    require(guests() == before);
    return goes_on;
  }

 private:
  using Slot = std::unique_ptr<u8, void (*)(void*)>;

  static Slot make_slot() {
    Slot slot(static_cast<u8*>(std::aligned_alloc(64, kSlot)), std::free);
    require(slot != nullptr);
    std::memset(slot.get(), 0, kSlot);
    return slot;
  }
  static std::array<int, 2> make_bells() {
    std::array<int, 2> ends{};
    require(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
    return ends;
  }

  // What of the slot is the guest's to write.
  struct Guests {
    u64 written, read;
    u32 writer_sleeps, reader_sleeps;
    std::array<u8, kEach> bytes;
    bool operator==(const Guests&) const = default;
  };
  [[nodiscard]] Guests guests() const {
    Guests all{
        rings_.up->written, rings_.down->read, rings_.up->writer_sleeps, rings_.down->reader_sleeps, {}};
    std::memcpy(all.bytes.data(), rings_.bytes, kEach);
    return all;
  }

  bool put(u64 count) {
    while (count > 0) {
      const std::span<u8> room = to_host_.room();
      require(!to_host_.broken() || !honest_);
      if (room.empty()) break;
      const size_t some = std::min<size_t>(count, room.size());
      for (size_t i = 0; i < some; ++i) room[i] = byte_at(put_++);
      to_host_.publish(some);
      count -= some;
    }
    return true;
  }

  bool get(u64 count) {
    const std::span<u8> there = from_host_.there();
    require(!from_host_.broken() || !honest_);
    const size_t some = std::min<size_t>(count, there.size());
    for (size_t i = 0; i < some; ++i) require(there[i] == byte_at(got_++) || !honest_);
    from_host_.consume(some);
    return true;
  }

  // One of the counters, its own or the host's, near its value or anywhere; or whether it sleeps, which
  // tells the host to ring for nobody.
  bool lie(u64 which, u64 value, bool near) {
    std::atomic<u64>* const counters[] = {&rings_.up->written, &rings_.down->read, &rings_.up->read,
                                          &rings_.down->written};
    std::atomic<u32>* const sleepers[] = {&rings_.up->writer_sleeps, &rings_.down->reader_sleeps};
    if (which >= 4) {
      *sleepers[which - 4] = static_cast<u32>(value);
      return true;
    }
    honest_ = false;
    knows_reads_ = knows_reads_ && which != 2;
    if (near)
      *counters[which] += value % (2 * kEach);
    else
      *counters[which] = value;
    return true;
  }

  bool scribble(u64 count, u64 where) {
    honest_ = knows_reads_ = false;
    for (u64 i = 0; i < count; ++i) slot_.get()[(where + i) % kSlot] = byte_at(where ^ i);
    return true;
  }

  // The host sleeps only when nothing is there; nothing would come then, and the guest leaves.
  bool host_reads(u64 count) {
    std::vector<u8> bytes(count);
    const bool there = taken_ + count <= put_;
    const bool looks = count > out_of_ring_ - taken_;  // it reads ahead
    const bool impossible = knows_reads_ && looks && rings_.up->written - out_of_ring_ > kEach;
    const bool whole = host_.read(bytes.data(), count);
    require(!impossible);
    out_of_ring_ = rings_.up->read;
    require(whole == there || !honest_);
    for (size_t i = 0; whole && i < count; ++i) require(bytes[i] == byte_at(taken_ + i) || !honest_);
    taken_ += count;
    return whole;
  }

  bool host_writes(u64 count) {
    const u64 under_way = sent_ - rings_.down->read;
    const bool possible = under_way <= kEach;
    const bool fits = possible && count <= kEach - under_way;
    if (!fits) leave();  // or the host would wait
    std::vector<u8> bytes(count);
    for (size_t i = 0; i < count; ++i) bytes[i] = byte_at(sent_ + i);
    const bool whole = host_.write(bytes.data(), count);
    require(possible || count == 0);
    require(whole == (fits || count == 0));
    sent_ += count;
    return whole;
  }

  void leave() {
    if (bells_[0] >= 0) close(bells_[0]);
    bells_[0] = -1;
  }

  Slot slot_ = make_slot();
  wire::ByteRings rings_{slot_.get(), kSlot};
  wire::RingWriter to_host_ = rings_.to_host();
  wire::RingReader from_host_ = rings_.from_host();
  std::array<int, 2> bells_ = make_bells();  // the guest's end, the host's
  bool honest_ = true;
  u64 put_ = 0;    // by the guest
  u64 taken_ = 0;  // of it, by the host
  u64 out_of_ring_ = 0;
  bool knows_reads_ = true;  // the guest has not written over how far the host has read
  u64 sent_ = 0;             // by the host
  u64 got_ = 0;              // of it, by the guest
  renderer::WindowConnection host_{bells_[1], rings_, [] {},
                                   [this] {
                                     leave();
                                     return -1;
                                   }};
};

}  // namespace

// NOLINTNEXTLINE(readability-identifier-naming): libFuzzer's name
extern "C" int LLVMFuzzerTestOneInput(const u8* data, size_t size) {
  Input input(data, size);
  World world;
  while (!input.ended() && world.step(input)) continue;
  return 0;
}
