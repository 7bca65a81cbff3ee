// The resources of one client by the numbers that it chose, each charged to the vGPU's memory.
#pragma once

#include <sys/uio.h>

#include <unordered_map>

#include "hostd/renderer/formats.hpp"

namespace gpupool::renderer {

// Where device memory is taken from: the vGPU's account, or a fuzzer's.
class Account {
 public:
  virtual ~Account() = default;
  virtual bool reserve(u64 bytes) = 0;
  virtual void give_back(u64 bytes) = 0;
};

// Memory that the client maps, too. Nobody can cut it short.
class SharedMemory {
 public:
  SharedMemory() = default;
  SharedMemory(SharedMemory&& other) noexcept : area_(other.area_) { other.area_ = {}; }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  ~SharedMemory();
  // A descriptor for the client, which the caller closes; -1 with errno.
  int make(u64 bytes);
  [[nodiscard]] u64 bytes() const { return area_.iov_len; }
  // What the backend keeps a pointer to: it stays where it is for as long as the memory does.
  iovec* area() { return &area_; }

 private:
  iovec area_{};
};

struct Resource {
  Shape shape;
  u64 bytes = 0;       // charged
  bool there = false;  // OpenGL has made it
  SharedMemory memory;
};

class Resources {
 public:
  explicit Resources(Account& account, u32 most, u64 most_shared_bytes)
      : account_(account), most_(most), most_shared_bytes_(most_shared_bytes) {}

  enum class Refusal { none, count, memory };
  // A new entry, charged. Throws wire::ProtocolError for a number that is taken and a shape that cannot be.
  Refusal add(u32 handle, const Shape& shape, Resource*& made);
  // Null when there is none.
  Resource* find(u32 handle);
  // Gives memory for `bytes` to a resource; a descriptor of it, or -1 where there is no more.
  int share(Resource& resource, u64 bytes);
  void remove(u32 handle);
  [[nodiscard]] u64 bytes() const { return bytes_; }

 private:
  Account& account_;
  u32 most_;
  u64 most_shared_bytes_;
  u64 shared_bytes_ = 0;
  u64 bytes_ = 0;
  std::unordered_map<u32, Resource> resources_;
};

}  // namespace gpupool::renderer
