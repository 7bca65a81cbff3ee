#include "hostd/beside/process.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "hostd/worker/sandbox.hpp"

namespace gpupool::worker {
// The log is a worker's; in these programs no driver writes to standard error.
void drain_standard_error() {}
}  // namespace gpupool::worker

namespace gpupool::beside {

int begin(const char* name, bool understood, const worker::LogStyle& style) {
  if (!understood) {
    worker::log(worker::LogLevel::error, "bad command line; this program is started by hostd");
    return worker::kExitUsage;
  }
  worker::configure_log(style, 0);
  worker::close_other_descriptors({});
  prctl(PR_SET_NAME, name);
  return 0;
}

int take_place(int folder, const char* name) {
  const int file = openat(folder, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (file < 0) return kExitSetup;
  if (flock(file, LOCK_EX | LOCK_NB) != 0) return errno == EWOULDBLOCK ? kExitAnother : kExitSetup;
  const std::string text = std::to_string(getpid()) + "\n";
  const bool written = ftruncate(file, 0) == 0 &&
                       pwrite(file, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
  return written ? 0 : kExitSetup;
}

}  // namespace gpupool::beside
