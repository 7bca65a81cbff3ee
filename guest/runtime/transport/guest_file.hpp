// What the guest agent has written down in a virtual machine: /etc/gpupool/guest.toml (docs/vms.md).
#pragma once

#include <string>

namespace gpupool::guest {

struct GuestFile {
  std::string path;           // where it was found, for messages; empty: there is none
  std::string endpoint;       // as in GPUPOOL_ENDPOINT
  std::string transport;      // as in GPUPOOL_TRANSPORT; empty: what the endpoint offers
  std::string window_socket;  // where the agent hands out the shared window; empty: there is none
};

// Reads GPUPOOL_GUEST_CONFIG, or /etc/gpupool/guest.toml, which need not exist. False with `why` when it
// cannot be understood; it is then not used in part.
bool read_guest_file(GuestFile& file, std::string& why);
// The text of such a file into `file`. For the reader above and its tests.
bool parse_guest_file(const std::string& text, GuestFile& file, std::string& why);

}  // namespace gpupool::guest
