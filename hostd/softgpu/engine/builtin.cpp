#include "hostd/softgpu/engine/builtin.hpp"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "hostd/softgpu/engine/memory.hpp"

namespace gpupool::softgpu::engine {
namespace {

constexpr u64 kMaxString = 1u << 16;
constexpr int kMaxWidth = 4096;

// A parameter that the caller has stored.
u64 argument(Lanes& x, const CallSite& site, size_t index, u32 lane) {
  const ProgramImpl& program = *x.launch->program;
  if (index >= site.arguments.size())
    throw LaunchFault{Fault::illegal_instruction, "built-in function called with too few arguments", lane};
  const Variable& variable = program.variables[site.arguments[index]];
  const u64 offset = program.functions[site.caller].local_base + variable.offset;
  u64 value = 0;
  std::memcpy(&value, x.warp->local + static_cast<u64>(lane) * x.launch->kernel->local_bytes + offset,
              std::min<u64>(variable.size, sizeof value));
  return value;
}

std::string read_string(Lanes& x, u32 lane, u64 address) {
  const u64 valid = std::min(valid_bytes(x, lane, address), kMaxString);
  if (valid == 0) locate_generic(x, lane, address, 1);  // throws
  const char* text = reinterpret_cast<const char*>(locate_generic(x, lane, address, 1));
  return std::string(text, strnlen(text, valid));
}

// The packed arguments of one printf call.
class Arguments {
 public:
  Arguments(Lanes& x, u32 lane, u64 address) : lanes_(x), lane_(lane), address_(address) {}

  template <typename T>
  T next() {
    address_ = (address_ + sizeof(T) - 1) / sizeof(T) * sizeof(T);
    T value;
    std::memcpy(&value, locate_generic(lanes_, lane_, address_, sizeof(T)), sizeof(T));
    address_ += sizeof(T);
    return value;
  }

 private:
  Lanes& lanes_;
  u32 lane_;
  u64 address_;
};

struct Specification {
  std::string flags;
  int width = 0;
  int precision = -1;
  bool wide = false;  // l, ll, j, z, t
  char conversion = 0;
};

int read_number(std::string_view format, size_t& at) {
  int value = 0;
  for (; at < format.size() && format[at] >= '0' && format[at] <= '9'; ++at)
    value = std::min(value * 10 + (format[at] - '0'), kMaxWidth);
  return value;
}

Specification read_specification(std::string_view format, size_t& at, Arguments& arguments) {
  Specification spec;
  while (at < format.size() && std::strchr("-+ #0", format[at]) != nullptr) spec.flags += format[at++];
  if (at < format.size() && format[at] == '*') {
    ++at;
    spec.width = std::clamp(arguments.next<int>(), -kMaxWidth, kMaxWidth);
  } else {
    spec.width = read_number(format, at);
  }
  if (at < format.size() && format[at] == '.') {
    ++at;
    if (at < format.size() && format[at] == '*') {
      ++at;
      spec.precision = std::min(arguments.next<int>(), kMaxWidth);
    } else {
      spec.precision = read_number(format, at);
    }
  }
  while (at < format.size() && std::strchr("hlLjzt", format[at]) != nullptr)
    spec.wide = spec.wide || format[at] != 'h', ++at;
  if (at < format.size()) spec.conversion = format[at++];
  return spec;
}

template <typename T>
void append(std::string& out, const Specification& spec, const char* length, T value) {
  const std::string format = "%" + spec.flags + "*.*" + length + spec.conversion;
  char buffer[2 * kMaxWidth + 512];
  const int written = std::snprintf(buffer, sizeof buffer, format.c_str(), spec.width, spec.precision, value);
  if (written > 0) out.append(buffer, std::min<size_t>(static_cast<size_t>(written), sizeof buffer - 1));
}

void append_string(std::string& out, const Specification& spec, std::string text) {
  if (spec.precision >= 0) text.resize(std::min(text.size(), static_cast<size_t>(spec.precision)));
  const bool left = spec.width < 0 || spec.flags.find('-') != std::string::npos;
  const size_t width = static_cast<size_t>(std::abs(spec.width));
  const std::string padding(width > text.size() ? width - text.size() : 0, ' ');
  out += left ? text + padding : padding + text;
}

void append_conversion(std::string& out, const Specification& spec, Arguments& arguments, Lanes& x,
                       u32 lane) {
  switch (spec.conversion) {
    case 'd':
    case 'i':
    case 'u':
    case 'o':
    case 'x':
    case 'X':
      if (spec.wide) return append(out, spec, "ll", arguments.next<i64>());
      return append(out, spec, "", arguments.next<int>());
    case 'c':
      return append(out, spec, "", arguments.next<int>());
    case 'f':
    case 'F':
    case 'e':
    case 'E':
    case 'g':
    case 'G':
    case 'a':
    case 'A':
      return append(out, spec, "", arguments.next<double>());
    case 'p':
      return append(out, spec, "", reinterpret_cast<void*>(arguments.next<u64>()));
    case 's': {
      const u64 address = arguments.next<u64>();
      return append_string(out, spec, address == 0 ? "(null)" : read_string(x, lane, address));
    }
    case '%':
      out += '%';
      return;
    default:  // as the device's printf does, what it does not know is printed as it stands
      out += '%';
      if (spec.conversion != 0) out += spec.conversion;
  }
}

std::string formatted(Lanes& x, u32 lane, u64 format_address, u64 arguments_address, u32& conversions) {
  const std::string format = read_string(x, lane, format_address);
  Arguments arguments(x, lane, arguments_address);
  std::string out;
  for (size_t at = 0; at < format.size();) {
    if (format[at] != '%') {
      out += format[at++];
      continue;
    }
    ++at;
    const Specification spec = read_specification(format, at, arguments);
    append_conversion(out, spec, arguments, x, lane);
    if (spec.conversion != '%') ++conversions;
  }
  return out;
}

void store_result(Lanes& x, const CallSite& site, u32 lane, u32 value) {
  if (site.results.empty()) return;
  const ProgramImpl& program = *x.launch->program;
  const Variable& variable = program.variables[site.results[0]];
  const u64 offset = program.functions[site.caller].local_base + variable.offset;
  std::memcpy(x.warp->local + static_cast<u64>(lane) * x.launch->kernel->local_bytes + offset, &value,
              std::min<u64>(variable.size, sizeof value));
}

void print_lanes(Lanes& x, const CallSite& site) {
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    u32 conversions = 0;
    x.launch->print(formatted(x, lane, argument(x, site, 0, lane), argument(x, site, 1, lane), conversions));
    store_result(x, site, lane, conversions);  // the device's printf returns the number of arguments
  }
}

// As the driver prints it (CUDA Programming Guide, "Assertion"), a line for each thread.
void print_assertion(const Lanes& x, const std::string& before, const std::string& message) {
  const Block& block = *x.block;
  const Dim3& shape = x.launch->block;
  std::string text;
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 thread = x.warp->index * kWarpLanes + first_lane(left);
    text += before + ": block: [" + std::to_string(block.id.x) + "," + std::to_string(block.id.y) + "," +
            std::to_string(block.id.z) + "], thread: [" + std::to_string(thread % shape.x) + "," +
            std::to_string(thread / shape.x % shape.y) + "," + std::to_string(thread / shape.x / shape.y) +
            "] Assertion `" + message + "` failed.\n";
  }
  // A closed stderr is the host's choice.
  [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, text.data(), text.size());
}

void fail_assertion(Lanes& x, const CallSite& site) {
  const u32 lane = first_lane(x.mask);
  const std::string message = read_string(x, lane, argument(x, site, 0, lane));
  const std::string file = read_string(x, lane, argument(x, site, 1, lane));
  const u32 line = static_cast<u32>(argument(x, site, 2, lane));
  const std::string function = read_string(x, lane, argument(x, site, 3, lane));
  print_assertion(x, file + ":" + std::to_string(line) + ": " + function, message);
  throw LaunchFault{
      Fault::assertion,
      file + ":" + std::to_string(line) + ": " + function + ": assertion `" + message + "` failed", lane};
}

// The handle of a condition is the address of its value (api/graph_conditional.cpp).
void set_conditional(Lanes& x, const CallSite& site) {
  for (u32 left = x.mask; left != 0; left &= left - 1) {
    const u32 lane = first_lane(left);
    const auto value = static_cast<u32>(argument(x, site, 1, lane));
    std::memcpy(locate_generic(x, lane, argument(x, site, 0, lane), sizeof value), &value, sizeof value);
  }
}

}  // namespace

Builtin builtin_of(std::string_view name) {
  if (name == "vprintf") return Builtin::vprintf;
  if (name == "__assertfail") return Builtin::assertfail;
  if (name == "cudaGraphSetConditional") return Builtin::set_conditional;
  return Builtin::none;
}

void call_builtin(Lanes& lanes, const CallSite& site, const Function& callee) {
  if (callee.builtin == Builtin::vprintf)
    print_lanes(lanes, site);
  else if (callee.builtin == Builtin::set_conditional)
    set_conditional(lanes, site);
  else
    fail_assertion(lanes, site);
}

}  // namespace gpupool::softgpu::engine
