// Mutations that know what a program is: messages are added, moved, dropped and changed as messages, and
// numbers in them become what passes the first checks: handles that other messages use, functions that exist,
// sizes at limits.
#include <algorithm>
#include <cstring>
#include <random>

#include "fuzz_entries.hpp"  // generated
#include "tests/fuzz/program.hpp"

extern "C" size_t LLVMFuzzerMutate(gpupool::u8* data, size_t size, size_t max_size);

namespace gpupool::fuzz {
namespace {

using Random = std::minstd_rand;
using wire::Handle;
using wire::HandleKind;

u32 below(Random& random, u64 limit) {
  return static_cast<u32>(random() % std::max<u64>(limit, 1));
}

Handle any_handle(Random& random) {
  const auto kind = static_cast<HandleKind>(1 + below(random, static_cast<u32>(HandleKind::count_) - 1));
  const u32 ours = below(random, 2) == 0 ? Handle::kWorkerAssigned : 0;
  // The harness's own context and streams are 1 and 2; the worker counts from 0, generation 1.
  return Handle::make(kind, ours != 0 ? 1 : below(random, 2), ours | below(random, 5));
}

bool looks_like_handle(u64 value) {
  const Handle handle{value};
  return handle.kind() > HandleKind::none && handle.kind() < HandleKind::count_ && handle.generation() < 16;
}

// Handles that occur anywhere in the program.
std::vector<u64> handles_of(const Program& program) {
  std::vector<u64> found;
  for (const Step& step : program.steps) {
    if (step.stream != 0) found.push_back(step.stream);
    for (size_t at = 0; at + 8 <= step.bytes.size(); at += 8) {
      u64 value = 0;
      std::memcpy(&value, step.bytes.data() + at, 8);
      if (looks_like_handle(value)) found.push_back(value);
    }
  }
  return found;
}

u64 interesting(Random& random) {
  static constexpr u64 kNumbers[] = {0,
                                     1,
                                     2,
                                     3,
                                     4,
                                     7,
                                     8,
                                     16,
                                     63,
                                     64,
                                     128,
                                     255,
                                     256,
                                     512,
                                     1024,
                                     4096,
                                     4097,
                                     65535,
                                     65536,
                                     1u << 20,
                                     (1u << 20) + 1,
                                     2u << 20,
                                     0x7fff'ffff,
                                     0x8000'0000,
                                     0xffff'ffff,
                                     u64{1} << 32,
                                     (u64{1} << 32) + 1,
                                     u64{1} << 62,
                                     ~u64{0} >> 1,
                                     u64{1} << 63,
                                     ~u64{0},
                                     ~u64{0} - 4095,
                                     0x3800'0000'0000,  // where the software GPU's memory begins
                                     0x3800'0000'0200,
                                     0x3800'0020'0000,
                                     wire::kWindowBase,
                                     wire::kWindowBase + wire::kStagingOffset,
                                     wire::kWindowBase + wire::kHeapOffset,
                                     wire::kStagingOffset,
                                     wire::kHeapOffset,
                                     wire::kWindowMinBytes,
                                     wire::kWindowMinBytes - 1};
  return kNumbers[below(random, std::size(kNumbers))];
}

Step new_message(Random& random) {
  using worker::kFuzzEntries;
  const worker::FuzzEntry& entry = kFuzzEntries[below(random, std::size(kFuzzEntries))];
  Step step;
  step.message = true;
  step.function = static_cast<u16>(entry.function);
  step.context = 1;
  step.flags = below(random, 4) == 0 ? 0 : u16{wire::kReply};
  if (below(random, 3) != 0) step.stream = Handle::make(HandleKind::stream, 0, 1 + below(random, 3)).bits;
  step.bytes = entry.seed();
  if (step.bytes.size() > wire::kInlineBytes) step.bytes.resize(wire::kInlineBytes);
  if (step.bytes.empty()) {
    // A hand-written handler: a handle and some numbers to begin with.
    step.bytes.resize(8 * (1 + below(random, 6)));
    for (size_t at = 0; at < step.bytes.size(); at += 8) {
      const u64 value = below(random, 2) == 0 ? any_handle(random).bits : interesting(random);
      std::memcpy(step.bytes.data() + at, &value, 8);
    }
  }
  return step;
}

void mutate_bytes(std::vector<u8>& bytes, size_t limit) {
  const size_t before = bytes.size();
  bytes.resize(limit);
  bytes.resize(LLVMFuzzerMutate(bytes.data(), before, limit));
}

// A number somewhere in the payload becomes another one that means something.
void mutate_number(Random& random, const Program& program, std::vector<u8>& bytes) {
  if (bytes.size() < 4) return;
  const size_t width = bytes.size() >= 8 && below(random, 3) != 0 ? 8 : 4;
  const size_t at = below(random, bytes.size() / width) * width;
  u64 value = 0;
  std::memcpy(&value, bytes.data() + at, width);
  const std::vector<u64> known = handles_of(program);
  switch (below(random, 5)) {
    case 0:
      value = known.empty() ? any_handle(random).bits : known[below(random, known.size())];
      break;
    case 1:
      value = any_handle(random).bits;
      break;
    case 2:
      value += below(random, 17) - u64{8};
      break;
    case 3:
      value = u64{1} << below(random, 64);
      break;
    default:
      value = interesting(random);
  }
  std::memcpy(bytes.data() + at, &value, width);
}

void mutate_header(Random& random, const Program& program, Step& step) {
  const std::vector<u64> known = handles_of(program);
  switch (below(random, 8)) {
    case 0:
      step.flags ^= static_cast<u16>(1u << below(random, 6));
      break;
    case 1:
      step.flags = static_cast<u16>(random());
      break;
    case 2:
      step.stream = below(random, 3) == 0 || known.empty() ? any_handle(random).bits
                                                           : known[below(random, known.size())];
      break;
    case 3:
      step.context = static_cast<u16>(below(random, 8) == 0 ? random() : below(random, 4));
      break;
    case 4:
      step.thread = static_cast<u16>(below(random, 8) == 0 ? random() : below(random, 3));
      break;
    case 5:  // a bulk piece, as honest clients have them
      step.flags |= below(random, 2) == 0 ? wire::kBulkIn : wire::kBulkOut;
      step.bulk_offset = static_cast<u32>(wire::kStagingOffset + below(random, 4) * 4096);
      step.bulk_size = below(random, 3) == 0 ? static_cast<u32>(interesting(random)) : below(random, 8192);
      break;
    case 6:
      step.bulk_offset = static_cast<u32>(interesting(random));
      break;
    default:
      step.function =
          static_cast<u16>(worker::kFuzzEntries[below(random, std::size(worker::kFuzzEntries))].function);
  }
}

// The payload moves to the window, as larger ones do.
void move_to_bulk(Random& random, Program& program, size_t index) {
  Step data;
  data.bulk_offset = static_cast<u32>(wire::kStagingOffset + below(random, 4) * 4096);
  data.bytes = program.steps[index].bytes;
  Step& step = program.steps[index];
  step.flags |= wire::kBulkIn | wire::kPayloadInBulk;
  step.bulk_offset = data.bulk_offset;
  step.bulk_size = static_cast<u32>(data.bytes.size());
  step.bytes.clear();
  program.steps.insert(program.steps.begin() + static_cast<std::ptrdiff_t>(index), std::move(data));
}

void mutate_step(Random& random, Program& program) {
  auto& steps = program.steps;
  const size_t index = below(random, steps.size());
  const auto at = steps.begin() + static_cast<std::ptrdiff_t>(index);
  switch (below(random, 12)) {
    case 0:
      steps.erase(at);
      break;
    case 1:
      if (steps.size() < kMaxSteps) steps.insert(at, Step(*at));
      break;
    case 2:
      std::swap(steps[index], steps[below(random, steps.size())]);
      break;
    case 3:
    case 4:
      if (steps.size() < kMaxSteps) steps.insert(at, new_message(random));
      break;
    case 5:
      if (at->message && steps.size() < kMaxSteps) move_to_bulk(random, program, index);
      break;
    case 6:
    case 7:
      if (at->message) mutate_header(random, program, *at);
      break;
    case 8:
      mutate_bytes(at->bytes, at->message ? wire::kInlineBytes : std::max<size_t>(2 * at->bytes.size(), 64));
      break;
    default:
      mutate_number(random, program, at->bytes);
  }
}

size_t write_out(const Program& program, u8* data, size_t max_size) {
  const std::vector<u8> bytes = serialise(program);
  const size_t size = std::min(bytes.size(), max_size);
  std::memcpy(data, bytes.data(), size);
  return size;
}

}  // namespace
}  // namespace gpupool::fuzz

extern "C" size_t LLVMFuzzerCustomMutator(gpupool::u8* data, size_t size, size_t max_size, unsigned seed) {
  using namespace gpupool::fuzz;
  Random random(seed);
  if (below(random, 16) == 0) return LLVMFuzzerMutate(data, size, max_size);
  Program program = parse({data, size});
  if (below(random, 32) == 0) program.settings ^= 1;
  for (gpupool::u32 count = 1 + below(random, 4); count > 0; --count) {
    if (program.steps.empty())
      program.steps.push_back(new_message(random));
    else
      mutate_step(random, program);
  }
  return write_out(program, data, max_size);
}

// The beginning of one program, then the end of another.
extern "C" size_t LLVMFuzzerCustomCrossOver(const gpupool::u8* first, size_t first_size,
                                            const gpupool::u8* second, size_t second_size, gpupool::u8* out,
                                            size_t max_size, unsigned seed) {
  using namespace gpupool::fuzz;
  Random random(seed);
  Program program = parse({first, first_size});
  const Program other = parse({second, second_size});
  program.steps.resize(below(random, program.steps.size() + 1));
  const size_t from = below(random, other.steps.size() + 1);
  program.steps.insert(program.steps.end(), other.steps.begin() + static_cast<std::ptrdiff_t>(from),
                       other.steps.end());
  if (program.steps.size() > kMaxSteps) program.steps.resize(kMaxSteps);
  return write_out(program, out, max_size);
}
