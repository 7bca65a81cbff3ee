// Wire handles to driver objects, for one kind. The client normally chooses the index, so the table checks
// everything: kind, cap, generation, whether the place is free or taken.
#pragma once

#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "wire/cpp/reader.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::worker {

template <typename T>
class HandleTable {
 public:
  explicit HandleTable(wire::HandleKind kind, u32 capacity = 1u << 20) : kind_(kind), capacity_(capacity) {}

  // Puts an object at a place the client chose. Throws ProtocolError if the handle is malformed or taken.
  void put(wire::Handle handle, T object) {
    check(handle);
    std::vector<Entry>& entries = half(handle);
    const u32 place = handle.index() & ~wire::Handle::kWorkerAssigned;
    if (place >= entries.size()) entries.resize(place + 1);
    Entry& entry = entries[place];
    if (entry.used) throw wire::ProtocolError("handle index " + std::to_string(place) + " is in use");
    entry = Entry{handle.generation(), true, std::move(object)};
  }

  // Puts an object at a place of our own choosing and returns its handle.
  wire::Handle add(T object) {
    u32 place = 0;
    if (!free_.empty()) {
      place = free_.back();
      free_.pop_back();
    } else {
      place = static_cast<u32>(ours_.size());
      if (place >= capacity_) return {};
      ours_.emplace_back();
    }
    Entry& entry = ours_[place];
    entry = Entry{(entry.generation + 1) & 0xff'ffffu, true, std::move(object)};
    return wire::Handle::make(kind_, entry.generation, place | wire::Handle::kWorkerAssigned);
  }

  // The object, or null when the handle is stale or of another kind.
  T* find(wire::Handle handle) {
    if (handle.kind() != kind_) return nullptr;
    std::vector<Entry>& entries = half(handle);
    const u32 place = handle.index() & ~wire::Handle::kWorkerAssigned;
    if (place >= entries.size()) return nullptr;
    Entry& entry = entries[place];
    return entry.used && entry.generation == handle.generation() ? &entry.object : nullptr;
  }

  // Removes and returns the object; nothing when the handle is stale.
  std::optional<T> take(wire::Handle handle) {
    T* object = find(handle);
    if (object == nullptr) return std::nullopt;
    std::optional<T> result{std::move(*object)};
    const u32 place = handle.index() & ~wire::Handle::kWorkerAssigned;
    half(handle)[place].used = false;
    if ((handle.index() & wire::Handle::kWorkerAssigned) != 0) free_.push_back(place);
    return result;
  }

  // Calls f(handle, object) for every live object.
  template <typename F>
  void each(F f) {
    for (std::vector<Entry>* entries : {&theirs_, &ours_})
      for (u32 i = 0; i < entries->size(); ++i)
        if (Entry& entry = (*entries)[i]; entry.used)
          f(wire::Handle::make(kind_, entry.generation,
                               entries == &ours_ ? i | wire::Handle::kWorkerAssigned : i),
            entry.object);
  }

 private:
  struct Entry {
    u32 generation = 0;
    bool used = false;
    T object{};
  };

  void check(wire::Handle handle) const {
    const u32 place = handle.index() & ~wire::Handle::kWorkerAssigned;
    if (handle.kind() != kind_) throw wire::ProtocolError("handle of another kind");
    if ((handle.index() & wire::Handle::kWorkerAssigned) != 0)
      throw wire::ProtocolError("handle index is the worker's to choose");
    if (place == 0 || place >= capacity_)
      throw wire::ProtocolError("handle index " + std::to_string(place) + " out of range");
  }
  std::vector<Entry>& half(wire::Handle handle) {
    return (handle.index() & wire::Handle::kWorkerAssigned) != 0 ? ours_ : theirs_;
  }

  wire::HandleKind kind_;
  u32 capacity_;
  std::vector<Entry> theirs_;  // indices the client chose
  std::vector<Entry> ours_;    // indices we chose
  std::vector<u32> free_;
};

}  // namespace gpupool::worker
