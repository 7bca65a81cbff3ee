// CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER, as driver 580 reads them (measured on an H100): the first entry
// that names no device ends the list; a device named twice fails cuInit with INVALID_DEVICE; numbers may have
// blanks before and anything behind them; "GPU-" is case-sensitive, the digits after it are not, and a unique
// beginning is enough; a list that begins with numbers takes numbers only.
#include <algorithm>
#include <cctype>
#include <cstring>
#include <string>

#include "guest/runtime/manual/device.hpp"

namespace gpupool::guest {
namespace {

std::string uuid_text(const wire::DeviceInfo& device) {
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string text = "GPU-";
  for (int i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += kDigits[device.uuid[i] >> 4];
    text += kDigits[device.uuid[i] & 15];
  }
  return text;
}

constexpr int kNone = -1;

// The index in `order` of the one device whose UUID begins with `entry`, or kNone.
int find_by_uuid(std::span<const wire::DeviceInfo> devices, const std::vector<u32>& order,
                 std::string entry) {
  for (size_t i = 4; i < entry.size(); ++i) entry[i] = static_cast<char>(std::tolower(entry[i]));
  if (entry.size() <= 4) return kNone;
  int found = kNone;
  for (size_t i = 0; i < order.size(); ++i) {
    if (!uuid_text(devices[order[i]]).starts_with(entry)) continue;
    if (found != kNone) return kNone;
    found = static_cast<int>(i);
  }
  return found;
}

// The number at the start of `entry`, or kNone. Larger than any device count stays large.
int parse_index(std::string_view entry) {
  size_t i = 0;
  while (i < entry.size() && std::isspace(static_cast<unsigned char>(entry[i])) != 0) ++i;
  if (i < entry.size() && entry[i] == '+') ++i;
  if (i == entry.size() || std::isdigit(static_cast<unsigned char>(entry[i])) == 0) return kNone;
  int value = 0;
  for (; i < entry.size() && std::isdigit(static_cast<unsigned char>(entry[i])) != 0; ++i)
    value = std::min(value * 10 + (entry[i] - '0'), 100'000);
  return value;
}

}  // namespace

CUresult choose_visible(std::span<const wire::DeviceInfo> devices, const char* visible, const char* order,
                        std::vector<u32>& chosen) {
  std::vector<u32> all(devices.size());
  for (u32 i = 0; i < all.size(); ++i) all[i] = i;
  // The host lists its devices fastest first, which is CUDA's default.
  if (order != nullptr && std::strcmp(order, "PCI_BUS_ID") == 0)
    std::stable_sort(all.begin(), all.end(), [&](u32 a, u32 b) {
      return std::strncmp(devices[a].pci_bus_id, devices[b].pci_bus_id, sizeof devices[a].pci_bus_id) < 0;
    });
  chosen.clear();
  if (visible == nullptr) {
    chosen = all;
    return chosen.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
  }
  const std::string_view list = visible;
  const bool by_uuid = list.starts_with("GPU-");
  for (size_t start = 0; start <= list.size();) {
    const size_t end = std::min(list.find(',', start), list.size());
    const std::string_view entry = list.substr(start, end - start);
    start = end + 1;
    const int index = !by_uuid                    ? parse_index(entry)
                      : entry.starts_with("GPU-") ? find_by_uuid(devices, all, std::string(entry))
                                                  : kNone;
    if (index < 0 || index >= static_cast<int>(all.size())) break;
    const u32 device = all[static_cast<size_t>(index)];
    if (std::find(chosen.begin(), chosen.end(), device) != chosen.end()) {
      chosen.clear();
      return CUDA_ERROR_INVALID_DEVICE;
    }
    chosen.push_back(device);
  }
  return chosen.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS;
}

}  // namespace gpupool::guest
