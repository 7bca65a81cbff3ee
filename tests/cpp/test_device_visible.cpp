// The answers expected here were measured on an H100 with driver 580, as far as one device can show them.
#include <doctest/doctest.h>

#include <cstring>

#include "guest/runtime/manual/device.hpp"

namespace gpupool::guest {
namespace {

// Four devices whose UUIDs begin 1000..., 2000..., 3000..., 3100..., listed against their PCI order.
std::vector<wire::DeviceInfo> four_devices() {
  std::vector<wire::DeviceInfo> devices(4);
  const u8 first_bytes[] = {0x10, 0x20, 0x30, 0x31};
  const char* addresses[] = {"0000:0c:00.0", "0000:0b:00.0", "0000:0a:00.0", "0000:09:00.0"};
  for (size_t i = 0; i < 4; ++i) {
    devices[i].uuid[0] = first_bytes[i];
    devices[i].uuid[15] = 0xAB;
    std::strncpy(devices[i].pci_bus_id, addresses[i], sizeof devices[i].pci_bus_id - 1);
  }
  return devices;
}

std::vector<u32> chosen(const char* visible, const char* order = nullptr) {
  std::vector<u32> result;
  const CUresult status = choose_visible(four_devices(), visible, order, result);
  CHECK(status == (result.empty() ? CUDA_ERROR_NO_DEVICE : CUDA_SUCCESS));
  return result;
}

using List = std::vector<u32>;

}  // namespace

TEST_CASE("without CUDA_VISIBLE_DEVICES every device is visible") {
  CHECK(chosen(nullptr) == List{0, 1, 2, 3});
  CHECK(chosen(nullptr, "FASTEST_FIRST") == List{0, 1, 2, 3});
  CHECK(chosen(nullptr, "PCI_BUS_ID") == List{3, 2, 1, 0});
}

TEST_CASE("numbers choose and order devices") {
  CHECK(chosen("2,0") == List{2, 0});
  CHECK(chosen("0,1", "PCI_BUS_ID") == List{3, 2});
  CHECK(chosen(" 1") == List{1});
  CHECK(chosen("1 ") == List{1});
  CHECK(chosen("+1") == List{1});
  CHECK(chosen("01") == List{1});
  CHECK(chosen("1abc") == List{1});
  CHECK(chosen("1;2") == List{1});
  CHECK(chosen("0x1") == List{0});
}

TEST_CASE("the first entry that names no device ends the list") {
  CHECK(chosen("") == List{});
  CHECK(chosen("-1") == List{});
  CHECK(chosen("4,0") == List{});
  CHECK(chosen("0,4,1") == List{0});
  CHECK(chosen("0,-1,1") == List{0});
  CHECK(chosen("abc") == List{});
  CHECK(chosen(",0") == List{});
  CHECK(chosen("0,,1") == List{0});
  CHECK(chosen("99999999999999999999") == List{});
  CHECK(chosen("0,GPU-10000000-0000-0000-0000-0000000000ab") == List{0});
}

TEST_CASE("UUIDs choose devices by any beginning that only one has") {
  CHECK(chosen("GPU-20000000-0000-0000-0000-0000000000ab") == List{1});
  CHECK(chosen("GPU-20000000-0000-0000-0000-0000000000AB") == List{1});
  CHECK(chosen("GPU-2,GPU-1") == List{1, 0});
  CHECK(chosen("GPU-30") == List{2});
  CHECK(chosen("GPU-3") == List{});  // two devices
  CHECK(chosen("GPU-") == List{});
  CHECK(chosen("gpu-2") == List{});
  CHECK(chosen("GPU-ffff,0") == List{});
  CHECK(chosen("GPU-2,0") == List{1});
  CHECK(chosen("GPU-20000000-0000-0000-0000-0000000000ab00") == List{});
}

TEST_CASE("a device named twice makes the whole list invalid") {
  std::vector<u32> result;
  CHECK(choose_visible(four_devices(), "0,0", nullptr, result) == CUDA_ERROR_INVALID_DEVICE);
  CHECK(choose_visible(four_devices(), "GPU-2,GPU-20", nullptr, result) == CUDA_ERROR_INVALID_DEVICE);
  CHECK(result.empty());
}

}  // namespace gpupool::guest
