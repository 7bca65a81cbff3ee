#include "tests/fuzz/program.hpp"

#include <algorithm>
#include <cstring>

namespace gpupool::fuzz {
namespace {

class Bytes {
 public:
  explicit Bytes(std::span<const u8> bytes) : bytes_(bytes) {}
  template <typename T>
  T get() {
    T value{};
    const size_t count = std::min(sizeof value, bytes_.size());
    if (count != 0) std::memcpy(&value, bytes_.data(), count);
    bytes_ = bytes_.subspan(count);
    return value;
  }
  std::vector<u8> take(u64 count) {
    const auto part = bytes_.first(std::min<u64>(count, bytes_.size()));
    bytes_ = bytes_.subspan(part.size());
    return {part.begin(), part.end()};
  }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }

 private:
  std::span<const u8> bytes_;
};

template <typename T>
void put(std::vector<u8>& out, T value) {
  const size_t before = out.size();
  out.resize(before + sizeof value);
  std::memcpy(out.data() + before, &value, sizeof value);
}

}  // namespace

Program parse(std::span<const u8> input) {
  Bytes in(input);
  Program program;
  program.settings = in.get<u8>();
  while (!in.empty() && program.steps.size() < kMaxSteps) {
    Step step;
    step.message = (in.get<u8>() & 1) != 0;
    if (step.message) {
      step.function = in.get<u16>();
      step.flags = in.get<u16>();
      step.thread = in.get<u16>();
      step.context = in.get<u16>();
      step.stream = in.get<u64>();
    }
    step.bulk_offset = in.get<u32>();
    if (step.message) step.bulk_size = in.get<u32>();
    const u64 count = in.get<u16>();
    step.bytes = in.take(std::min(count, step.message ? u64{wire::kInlineBytes} : kMaxStepData));
    program.steps.push_back(std::move(step));
  }
  return program;
}

std::vector<u8> serialise(const Program& program) {
  std::vector<u8> out;
  put(out, program.settings);
  for (const Step& step : program.steps) {
    put(out, static_cast<u8>(step.message));
    if (step.message) {
      put(out, step.function);
      put(out, step.flags);
      put(out, step.thread);
      put(out, step.context);
      put(out, step.stream);
    }
    put(out, step.bulk_offset);
    if (step.message) put(out, step.bulk_size);
    put(out, static_cast<u16>(step.bytes.size()));
    out.insert(out.end(), step.bytes.begin(), step.bytes.end());
  }
  return out;
}

}  // namespace gpupool::fuzz
