// Constants and bound variables of a program.
#include <cstring>

#include "hostd/softgpu/engine/ir.hpp"

namespace gpupool::softgpu::engine {

u32 ProgramImpl::new_row(u32 bytes) {
  const u32 offset = static_cast<u32>(constants.size() * 8);
  constants.resize(constants.size() + (row_bytes(bytes) + 63) / 64 * 8);
  return offset;
}

void ProgramImpl::fill_row(u32 offset, u64 value, u32 bytes) {
  u8* row = reinterpret_cast<u8*>(constants.data()) + offset;
  if (bytes == 0) {
    const u32 mask = value != 0 ? ~0u : 0;
    std::memcpy(row, &mask, 4);
    return;
  }
  const u32 step = bytes == 1 ? 2 : bytes;
  for (u32 lane = 0; lane < kWarpLanes; ++lane) std::memcpy(row + lane * step, &value, step < 8 ? step : 8);
}

Place ProgramImpl::constant_row(u64 value, u32 bytes) {
  if (bytes == 0) value = value != 0;
  if (bytes < 8 && bytes > 0) value &= (1ull << (bytes * 8)) - 1;
  const u32 kind = bytes == 0 ? 0 : bytes <= 2 ? 1 : bytes == 4 ? 2 : bytes == 8 ? 3 : 4;
  const auto [found, added] = rows_[kind].try_emplace(value, 0);
  if (added) {
    const u32 offset = new_row(bytes);
    fill_row(offset, value, bytes);
    found->second = ~static_cast<Place>(offset);
  }
  return found->second;
}

Place ProgramImpl::address_row(u32 variable, i64 addend, u32 bytes) {
  for (const AddressConstant& known : address_constants)
    if (known.variable == variable && known.addend == addend && known.bytes == bytes)
      return ~static_cast<Place>(known.offset);
  const u32 offset = new_row(bytes);
  address_constants.push_back({offset, bytes, variable, addend});
  return ~static_cast<Place>(offset);
}

Place ProgramImpl::local_row(u32 function, i64 value, u32 bytes) {
  for (const LocalConstant& known : local_constants)
    if (known.function == function && known.value == value && known.bytes == bytes)
      return ~static_cast<Place>(known.offset);
  const u32 offset = new_row(bytes);
  local_constants.push_back({offset, bytes, function, value});
  return ~static_cast<Place>(offset);
}

void ProgramImpl::place_local_constants() {
  for (const LocalConstant& constant : local_constants)
    fill_row(constant.offset, functions[constant.function].local_base + static_cast<u64>(constant.value),
             constant.bytes);
}

void ProgramImpl::bind(u64 index, u64 address) {
  global_addresses.at(index) = address;
}

void ProgramImpl::finish_binding() {
  std::unordered_map<std::string_view, u64> addresses;
  for (const Variable& variable : variables)
    if (variable.global != ~0u) addresses[variable.name] = global_addresses[variable.global];
  for (u32 i = 0; i < functions.size(); ++i) addresses[functions[i].name] = kCodeWindow + 16ull * i;
  for (size_t i = 0; i < global_infos.size(); ++i) {
    GlobalInfo& info = global_infos[i];
    for (const Relocation& relocation : variables[global_variables[i]].relocations) {
      const u64 value =
          (addresses.at(relocation.name) + static_cast<u64>(relocation.addend)) >> relocation.shift;
      std::memcpy(info.initial.data() + relocation.at, &value, relocation.bytes);
    }
    if (!info.initial.empty())
      std::memcpy(reinterpret_cast<void*>(global_addresses[i]), info.initial.data(), info.initial.size());
  }
  for (const AddressConstant& constant : address_constants) {
    const u64 address =
        global_addresses[variables[constant.variable].global] + static_cast<u64>(constant.addend);
    fill_row(constant.offset, address, constant.bytes);
  }
}

std::string ProgramImpl::line_text(u32 line) const {
  size_t start = 0;
  for (u32 at = 1; at < line; ++at) {
    const size_t end = text.find('\n', start);
    if (end == std::string::npos) return {};
    start = end + 1;
  }
  std::string result = text.substr(start, text.find('\n', start) - start);
  const size_t first = result.find_first_not_of(" \t");
  return first == std::string::npos ? std::string() : result.substr(first);
}

}  // namespace gpupool::softgpu::engine
