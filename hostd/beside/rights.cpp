#include "hostd/beside/rights.hpp"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace gpupool::beside {

bool drop_rights(std::string& error) {
  constexpr int kMostRights = 64;
  for (int right = 0; right < kMostRights; ++right) prctl(PR_CAPBSET_DROP, right, 0, 0, 0);
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  if (syscall(SYS_capset, &header, none) == 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0) return true;
  error = std::string("giving up rights: ") + std::strerror(errno);
  return false;
}

}  // namespace gpupool::beside
