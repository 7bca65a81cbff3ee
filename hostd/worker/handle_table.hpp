// Wire handles to driver objects, for one kind. The client normally chooses the index, so the table checks
// everything: kind, cap, generation, whether the place is free or taken.
#pragma once

#include <optional>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "wire/cpp/reader.hpp"
#include "wire/cpp/types.hpp"

namespace gpupool::worker {

// Handle index of the context whose call is being executed: what is made belongs to it. One dispatcher
// executes all calls of this process.
inline u32 g_owner = 0;

template <typename T>
class HandleTable {
 public:
  explicit HandleTable(wire::HandleKind kind, u32 capacity = 1u << 20) : kind_(kind), capacity_(capacity) {}

  // Places from here on are refused; index 0 counts and is never used. Before the first object.
  // `on_full` is called when there is no place of our own choosing left.
  void set_capacity(u32 capacity, void (*on_full)()) {
    capacity_ = capacity;
    on_full_ = on_full;
  }

  // Puts an object at a place the client chose. Throws ProtocolError if the handle is malformed or taken.
  void put(wire::Handle handle, T object) {
    check(handle);
    std::vector<Entry>& entries = half(handle);
    const u32 place = handle.index() & ~wire::Handle::kWorkerAssigned;
    if (place >= entries.size()) entries.resize(place + 1);
    Entry& entry = entries[place];
    if (entry.used) throw wire::ProtocolError("handle index " + std::to_string(place) + " is in use");
    if constexpr (std::is_pointer_v<T>) names_[object] = handle;
    entry = Entry{handle.generation(), g_owner, true, std::move(object)};
  }

  // Puts an object at a place of our own choosing and returns its handle.
  wire::Handle add(T object) {
    u32 place = 0;
    if (!free_.empty()) {
      place = free_.back();
      free_.pop_back();
    } else {
      place = static_cast<u32>(ours_.size());
      if (place >= capacity_) {
        if (on_full_ != nullptr) on_full_();
        return {};
      }
      ours_.emplace_back();
    }
    Entry& entry = ours_[place];
    entry = Entry{(entry.generation + 1) & 0xff'ffffu, g_owner, true, std::move(object)};
    return wire::Handle::make(kind_, entry.generation, place | wire::Handle::kWorkerAssigned);
  }

  // The handle of an object that the driver returned: the one it has already, whoever chose it, or a new one
  // of ours. Null when the table is full.
  wire::Handle find_or_add(T object)
    requires std::is_pointer_v<T>
  {
    const auto known = names_.find(object);
    if (known != names_.end()) {
      const T* const current = find(known->second);
      if (current != nullptr && *current == object) return known->second;
    }
    const wire::Handle handle = add(object);
    if (handle) names_[object] = handle;
    return handle;
  }

  // The handle that a driver object has already, or a null handle.
  wire::Handle name_of(T object) const
    requires std::is_pointer_v<T>
  {
    const auto known = names_.find(object);
    return known == names_.end() ? wire::Handle{} : known->second;
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
    if constexpr (std::is_pointer_v<T>) {
      const auto known = names_.find(*result);
      if (known != names_.end() && known->second == handle) names_.erase(known);
    }
    half(handle)[place].used = false;
    if ((handle.index() & wire::Handle::kWorkerAssigned) != 0) free_.push_back(place);
    return result;
  }

  // Removes what was made in the context `owner` and calls f(handle, object) for each.
  template <typename F>
  void take_owned(u32 owner, F f) {
    std::vector<wire::Handle> owned;
    for (std::vector<Entry>* entries : {&theirs_, &ours_})
      for (u32 i = 0; i < entries->size(); ++i)
        if (const Entry& entry = (*entries)[i]; entry.used && entry.owner == owner)
          owned.push_back(wire::Handle::make(kind_, entry.generation,
                                             entries == &ours_ ? i | wire::Handle::kWorkerAssigned : i));
    for (const wire::Handle handle : owned)
      if (std::optional<T> object = take(handle)) f(handle, *object);
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
    u32 owner = 0;  // handle index of a context
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
  void (*on_full_)() = nullptr;
  std::vector<Entry> theirs_;  // indices the client chose
  std::vector<Entry> ours_;    // indices we chose
  std::vector<u32> free_;
  struct Nameless {};
  // Where to find a driver object again: the driver returns the same node more than once.
  std::conditional_t<std::is_pointer_v<T>, std::unordered_map<T, wire::Handle>, Nameless> names_;
};

}  // namespace gpupool::worker
