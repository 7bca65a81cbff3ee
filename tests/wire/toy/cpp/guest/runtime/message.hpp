// Stands in for the guest runtime in the test of generated code: a Call runs the worker's handler at once, on
// the bytes that were put, and hands its answer back.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "wire/cpp/reader.hpp"
#include "wire/cpp/types.hpp"
#include "wire_functions.hpp"

namespace gpupool::wire {
inline constexpr u32 kReplyBytes = 4096 - 64;
}

namespace gpupool::guest {

struct Stream {
  wire::Handle handle;
};
struct Module {
  wire::Handle handle;
};

// Defined in round_trip.cpp.
Stream* resolve_stream(CUstream stream, CUresult& error);
Module* find(CUmodule handle);
CUresult carry(wire::Function function, wire::Handle stream, std::vector<u8> request,
               std::vector<u8>& answer);

class HandleAllocator {
 public:
  wire::Handle take() { return wire::Handle::make(wire::HandleKind::graph, 1, next_++); }
  void give_back(wire::Handle handle) { given_back.push_back(handle); }
  std::vector<wire::Handle> given_back;

 private:
  u32 next_ = 1;
};
HandleAllocator& handles(wire::HandleKind kind);

class Call {
 public:
  explicit Call(wire::Function function) : function_(function) {}
  template <typename T>
  void put(const T& value) {
    out_.put(value);
  }
  template <typename T>
  void put_array(const T* values, u64 count) {
    out_.put_array(values, count);
  }
  void put_string(const char* text) { put_array(text, text == nullptr ? 0 : std::strlen(text)); }
  void on(Stream& stream) { stream_ = stream.handle; }
  void expect_answer(u64) {}
  CUresult send() { return wait(); }
  CUresult wait() {
    const CUresult result = carry(function_, stream_, {out_.bytes().begin(), out_.bytes().end()}, answer_);
    in_ = wire::Reader(answer_);
    return result;
  }
  template <typename T>
  T get() {
    return in_.get<T>();
  }
  template <typename T>
  u64 get_array(T* out, u64 capacity) {
    const std::vector<T> values = in_.get_array<T>(1u << 20);
    std::copy_n(values.begin(), std::min<u64>(capacity, values.size()), out);
    return values.size();
  }

 private:
  wire::Function function_;
  wire::Handle stream_;
  wire::Writer out_;
  std::vector<u8> answer_;
  wire::Reader in_{std::span<const u8>{}};
};

}  // namespace gpupool::guest
