#include "hostd/renderer/session.hpp"

#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "wire/cpp/futex.hpp"
#include "wire/cpp/reader.hpp"

namespace gpupool::renderer {
namespace {

using wire::ProtocolError;

constexpr u32 kMostName = 4096;        // bytes
constexpr u32 kMostWords = 4u << 20;   // of a submitted buffer; Mesa's are 64 Ki
constexpr u32 kMostSubContexts = 64;   // OpenGL contexts
constexpr u64 kMostStride = 1u << 31;  // of all rows or layers of a transfer together
constexpr u64 kPieceBytes = 1u << 20;  // of data that is still to come
constexpr u64 kSpareTransferBytes = 1 << 20;
constexpr size_t kKeptBytes = 32u << 20;  // of buffers between two commands
constexpr u64 kLookNs = 100'000'000;

Shape shape_of(const CreateWords& words) {
  return Shape{words.target, words.format,     words.bind,       words.width,  words.height,
               words.depth,  words.array_size, words.last_level, words.samples};
}

template <typename Words>
Box box_of(const Words& words) {
  return Box{words.x, words.y, words.z, words.width, words.height, words.depth};
}

}  // namespace

template <typename Words>
bool Session::take(const Header& header, Words& words) {
  if (header.length < sizeof words / sizeof(u32))
    throw ProtocolError("command " + std::to_string(static_cast<u32>(header.command)) + " of " +
                        std::to_string(header.length) + " words");
  return stream_.read(&words, sizeof words);
}

bool Session::serve() {
  Header header;
  if (!stream_.read(&header, sizeof header)) return false;
  ++tally_.commands;
  const bool begins = header.command == Command::create_renderer;
  if (begins == has_context_)
    throw ProtocolError(begins ? "a second context" : "a command before the context is made");
  if (header.command != Command::busy_wait) just_read_ = 0;
  const bool going_on = carry_out(header);
  if (data_.capacity() > kKeptBytes) data_ = {};
  return going_on;
}

bool Session::carry_out(const Header& header) {
  switch (header.command) {
    case Command::create_renderer:
      return create_renderer(header.length);
    case Command::get_caps:
      return send_caps(1);
    case Command::get_caps2:
      return send_caps(2);
    case Command::ping:
      return answer_ping();
    case Command::version: {
      u32 wanted = 0;
      return take(header, wanted) && answer_version(wanted);
    }
    case Command::create: {
      CreateWords words;
      return take(header, words) && create(words, 0, false);
    }
    case Command::create2: {
      Create2Words words;
      return take(header, words) && create(words.resource, words.bytes, true);
    }
    case Command::unref: {
      u32 handle = 0;
      if (!take(header, handle)) return false;
      unref(handle);
      return true;
    }
    case Command::transfer_get: {
      TransferWords words;
      return take(header, words) && get(words);
    }
    case Command::transfer_put: {
      TransferWords words;
      return take(header, words) && put(words);
    }
    case Command::transfer_get2:
    case Command::transfer_put2: {
      Transfer2Words words;
      if (!take(header, words)) return false;
      transfer_shared(words, header.command == Command::transfer_get2);
      return true;
    }
    case Command::submit:
      return submit(header.length);
    case Command::busy_wait: {
      BusyWaitWords words;
      return take(header, words) && busy_wait(words);
    }
  }
  throw ProtocolError("unknown command " + std::to_string(static_cast<u32>(header.command)));
}

bool Session::create_renderer(u32 bytes) {
  if (bytes > kMostName) throw ProtocolError("a name of " + std::to_string(bytes) + " bytes");
  std::string name(bytes, 0);
  if (!stream_.read(name.data(), bytes)) return false;
  name.resize(strnlen(name.data(), name.size()));
  turn_.take();
  has_context_ = backend_.create_context(name);
  if (!has_context_) throw std::runtime_error("virglrenderer does not make a context");
  submitted();
  return true;
}

bool Session::send_caps(u32 set) {
  const std::vector<u8> caps = backend_.capabilities(set);
  const u32 header[2] = {static_cast<u32>(caps.size()) + 1, set};
  ++tally_.answers;
  return stream_.write(header, sizeof header) && stream_.write(caps.data(), caps.size());
}

bool Session::answer_ping() {
  if (!stream_.passes_descriptors()) return true;  // unanswered: version 0
  const u32 answer[2] = {0, static_cast<u32>(Command::ping)};
  return stream_.write(answer, sizeof answer);
}

bool Session::answer_version(u32 wanted) {
  if (!stream_.passes_descriptors()) throw ProtocolError("a version where there is only one");
  version_ = wanted >= kSharedVersion ? kSharedVersion : 0;
  const u32 answer[3] = {1, static_cast<u32>(Command::version), version_};
  return stream_.write(answer, sizeof answer);
}

// Where the memory is used up: a client that shares memory is told, by a missing descriptor, and its OpenGL
// says GL_OUT_OF_MEMORY. For everything else the protocol has no answer, and the session ends.
bool Session::create(const CreateWords& words, u32 shared_bytes, bool shares) {
  if (shares != (version_ == kSharedVersion)) throw ProtocolError("a resource of another version");
  const bool answers = shares && shared_bytes != 0;
  Resource* made = nullptr;
  const Resources::Refusal refusal = resources_.add(words.handle, shape_of(words), made);
  if (refusal != Resources::Refusal::none) {
    if (answers) return stream_.write_descriptor(-1);
    throw OutOfMemory(refusal == Resources::Refusal::count ? "the cap on resources is reached"
                                                           : "the vGPU's memory is used up");
  }
  turn_.take();
  made->there = backend_.create(words.handle, made->shape);
  submitted();
  if (!answers) return true;  // a client that goes on with what is not there gets nothing drawn
  const int fd = made->there ? resources_.share(*made, shared_bytes) : -1;
  const bool whole = fd >= 0 && backend_.attach(words.handle, made->memory.area());
  if (!whole) unref(words.handle);
  ++tally_.answers;
  const bool sent = stream_.write_descriptor(whole ? fd : -1);
  if (fd >= 0) close(fd);
  return sent;
}

void Session::unref(u32 handle) {
  const Resource* resource = resources_.find(handle);
  if (resource == nullptr) return;
  if (resource->there) backend_.destroy(handle);
  resources_.remove(handle);
}

Resource& Session::used(u32 handle, u32 level, const Box& box) {
  Resource* resource = resources_.find(handle);
  if (resource == nullptr) throw ProtocolError("no resource " + std::to_string(handle));
  if (!holds(resource->shape, level, box))
    throw ProtocolError("a transfer beyond resource " + std::to_string(handle));
  return *resource;
}

namespace {

// Data of the transfer fit its resource, and no sum inside the renderer can overflow 32 bits.
void check_amount(const Resource& resource, const TransferWords& words) {
  const u64 rows = u64{words.stride} * std::max<u32>(words.height, 1);
  const u64 layers = u64{words.layer_stride} * std::max<u32>(words.depth, 1);
  if (rows > kMostStride || layers > kMostStride) throw ProtocolError("a transfer with impossible strides");
  if (words.bytes > 4 * resource.bytes + kSpareTransferBytes)
    throw ProtocolError("a transfer of " + std::to_string(words.bytes) + " bytes, more than its resource");
}

}  // namespace

bool Session::get(const TransferWords& words) {
  const Box box = box_of(words);
  const Resource& resource = used(words.handle, words.level, box);
  check_amount(resource, words);
  data_.resize(words.bytes);  // where OpenGL writes nothing it has what this same client read or wrote before
  iovec memory{data_.data(), data_.size()};
  turn_.take();
  if (resource.there)
    backend_.read(words.handle, words.level, words.stride, words.layer_stride, box, 0, &memory);
  submitted();
  tally_.from_device_bytes += words.bytes;
  ++tally_.answers;
  return stream_.write(data_.data(), data_.size());
}

// Memory grows as the data come: a client cannot make us take what it does not send.
bool Session::receive(std::vector<u8>& data, u64 bytes) {
  data.clear();
  while (data.size() < bytes) {
    const u64 piece = std::min<u64>(bytes - data.size(), std::max<u64>(kPieceBytes, data.size()));
    const size_t before = data.size();
    data.resize(before + piece);
    if (!stream_.read(data.data() + before, piece)) return false;
  }
  return true;
}

bool Session::put(const TransferWords& words) {
  const Box box = box_of(words);
  const Resource& resource = used(words.handle, words.level, box);
  check_amount(resource, words);
  if (!receive(data_, words.bytes)) return false;
  iovec memory{data_.data(), data_.size()};
  turn_.take();
  if (resource.there)
    backend_.write(words.handle, words.level, words.stride, words.layer_stride, box, 0, &memory);
  submitted();
  tally_.to_device_bytes += words.bytes;
  return true;
}

void Session::transfer_shared(const Transfer2Words& words, bool reads) {
  const Box box = box_of(words);
  Resource& resource = used(words.handle, words.level, box);
  const u64 size = resource.memory.bytes();
  if (size == 0 || words.offset > size || tight_bytes(resource.shape, box) > 4 * size + kSpareTransferBytes)
    throw ProtocolError("a transfer beyond the memory of resource " + std::to_string(words.handle));
  turn_.take();
  if (reads) {
    backend_.read(words.handle, words.level, 0, 0, box, words.offset, nullptr);
    tally_.from_device_bytes += words.bytes;
    just_read_ = words.handle;  // OpenGL's read returns when the data are there
  } else {
    backend_.write(words.handle, words.level, 0, 0, box, words.offset, nullptr);
    tally_.to_device_bytes += words.bytes;
  }
  submitted();
}

namespace {

// What the buffer does to the number of OpenGL contexts, and whether it asks for a query's result. Throws for
// what it may not hold.
i64 check_commands(const std::vector<u32>& words, bool& asks_queries) {
  i64 contexts = 0;
  size_t at = 0;
  while (at < words.size()) {
    const auto command = std::bit_cast<StreamCommand>(words[at]);
    if (command.words >= words.size() - at) throw ProtocolError("a command that goes beyond its buffer");
    const bool makes_memory = command.number == kCreateInStream || command.number == kTypeInStream;
    if (makes_memory || command.number > kLastKnown)
      throw ProtocolError("command " + std::to_string(command.number) + " in a buffer");
    if (command.number == kGetQueryResult) asks_queries = true;
    if (command.number == kCreateSubContext) ++contexts;
    if (command.number == kDestroySubContext) --contexts;
    at += size_t{command.words} + 1;
  }
  return contexts;
}

}  // namespace

bool Session::submit(u32 count) {
  if (count > kMostWords) throw ProtocolError("a buffer of " + std::to_string(count) + " words");
  words_.resize(count);
  if (!stream_.read(words_.data(), u64{count} * sizeof(u32))) return false;
  const i64 contexts = i64{sub_contexts_} + check_commands(words_, asks_queries_);
  sub_contexts_ = static_cast<u32>(std::max<i64>(contexts, 0));
  if (sub_contexts_ > kMostSubContexts) throw OutOfMemory("the cap on OpenGL contexts is reached");
  turn_.take();
  backend_.submit(words_.data(), count);
  submitted();
  ++tally_.buffers;
  return true;
}

void Session::submitted() {
  turn_.submitted();
  unmarked_ = unflushed_ = true;
}

void Session::flush() {
  if (unflushed_) backend_.flush();
  unflushed_ = false;
}

// Sleeps until everything so far is done. False when the client has gone meanwhile. OpenGL itself sleeps: it
// is woken at once, where a nap of ours would be too long, or end when others have the processor.
bool Session::pass() {
  while (!backend_.reach(kLookNs))
    if (stream_.ended()) return false;
  return true;
}

bool Session::busy_wait(const BusyWaitWords& words) {
  u32 busy = 0;
  const bool follows_ping = words.handle == 0 && words.flags == 0;
  if (!follows_ping && (words.handle == 0 || words.handle != just_read_)) {
    if (unmarked_) backend_.mark();
    if (unmarked_) passed_ = false;
    unmarked_ = unflushed_ = false;  // reach() flushes
    if (!passed_ && (words.flags & kBusyWaitWaits) != 0 && !pass()) return false;
    passed_ = passed_ || (words.flags & kBusyWaitWaits) != 0 || backend_.reach(0);
    busy = passed_ ? 0 : 1;
  }
  // A program that wants a query's result reads it and waits, again and again.
  if (!follows_ping && asks_queries_) backend_.settle_queries();
  const u32 answer[3] = {1, static_cast<u32>(Command::busy_wait), busy};
  ++tally_.answers;
  return stream_.write(answer, sizeof answer);
}

}  // namespace gpupool::renderer
