#include "hostd/worker/image_store.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <mutex>
#include <thread>

#include "hostd/worker/log.hpp"
#include "hostd/worker/manual/module_image.hpp"

namespace gpupool::worker {

namespace {

constexpr u64 kNameBytes = 64;                       // the digest in hexadecimal
constexpr i64 kStaleNs = i64{3600} * 1'000'000'000;  // whoever wrote this long at one file has ended
constexpr u64 kMostWaiting = ImageStore::kMostBytes / 4;
constexpr const char* kTemporary = "new-";

class File {
 public:
  File(const std::string& path, int flags)
      : fd_(open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600)) {}
  ~File() {
    if (fd_ >= 0) close(fd_);
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  [[nodiscard]] bool good() const { return fd_ >= 0; }
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

std::string name_of(const wire::Digest& digest) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string name;
  for (const u8 byte : digest) {
    name += kHex[byte >> 4];
    name += kHex[byte & 15];
  }
  return name;
}

bool read_all(int fd, u8* data, u64 bytes) {
  for (u64 filled = 0; filled < bytes;) {
    const ssize_t got = ::pread(fd, data + filled, bytes - filled, static_cast<off_t>(filled));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    filled += static_cast<u64>(got);
  }
  return true;
}

bool write_all(int fd, std::span<const u8> data) {
  while (!data.empty()) {
    const ssize_t put = ::write(fd, data.data(), data.size());
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return false;
    data = data.subspan(static_cast<u64>(put));
  }
  return true;
}

i64 nanoseconds(const timespec& time) {
  return i64{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

}  // namespace

ImageStore::ImageStore(std::string folder, u64 most_bytes)
    : folder_(std::move(folder)), most_bytes_(most_bytes) {}

std::vector<ImageStore::Entry> ImageStore::list() const {
  std::vector<Entry> entries;
  DIR* folder = folder_.empty() ? nullptr : opendir(folder_.c_str());
  if (folder == nullptr) return entries;
  while (const dirent* item = readdir(folder)) {
    const std::string name = item->d_name;
    const bool temporary = name.starts_with(kTemporary);
    struct stat facts {};
    if ((!temporary && name.size() != kNameBytes) ||
        fstatat(dirfd(folder), item->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISREG(facts.st_mode))
      continue;
    entries.push_back({name, static_cast<u64>(facts.st_size), nanoseconds(facts.st_mtim), temporary});
  }
  closedir(folder);
  std::sort(entries.begin(), entries.end(),
            [](const Entry& one, const Entry& other) { return one.used_ns > other.used_ns; });
  return entries;
}

std::vector<u64> ImageStore::sizes() const {
  std::vector<u64> found;
  for (const Entry& entry : list())
    if (!entry.temporary && found.size() < kMostTold) found.push_back(entry.bytes);
  return found;
}

std::unique_ptr<u8[]> ImageStore::load(const wire::Digest& name, u64 bytes) const {
  if (folder_.empty()) return nullptr;
  const std::string place = path(name_of(name));
  const File file(place, O_RDWR);
  struct stat facts {};
  if (!file.good() || fstat(file.get(), &facts) != 0 || !S_ISREG(facts.st_mode) ||
      static_cast<u64>(facts.st_size) != bytes)
    return nullptr;
  auto data = std::make_unique_for_overwrite<u8[]>(bytes);
  if (!read_all(file.get(), data.get(), bytes) || wire::sha256({data.get(), bytes}) != name) {
    log(LogLevel::warning, "a kept code image was damaged and is removed", place);
    unlink(place.c_str());
    return nullptr;
  }
  // Its time says when it was last used. The sandbox has no call that sets times, but writing what is there
  // already does it.
  if (bytes != 0 && pwrite(file.get(), data.get(), 1, 0) != 1)
    log(LogLevel::debug, "a kept code image cannot be marked as used", place);
  return data;
}

void ImageStore::keep(std::span<const u8> image) const {
  static std::atomic<u64> count{0};
  // One image that takes most of the room would cost more than it brings.
  if (folder_.empty() || image.empty() || image.size() > most_bytes_ / 4) return;
  const std::string place = path(name_of(wire::sha256(image)));
  if (access(place.c_str(), F_OK) == 0) return;
  mkdir(folder_.c_str(), 0700);
  const std::string fresh = path(kTemporary + std::to_string(getpid()) + "-" + std::to_string(count++));
  unlink(fresh.c_str());  // of an earlier process with this number
  bool written = false;
  {
    const File file(fresh, O_WRONLY | O_CREAT | O_EXCL);
    written = file.good() && write_all(file.get(), image);
  }
  if (!written || rename(fresh.c_str(), place.c_str()) != 0) {
    log(LogLevel::debug, "a code image is not kept", folder_ + ": " + std::strerror(errno));
    unlink(fresh.c_str());
    return;
  }
  make_room();
}

void ImageStore::make_room() const {
  timespec now{};
  clock_gettime(CLOCK_REALTIME, &now);
  u64 total = 0;
  for (const Entry& entry : list()) {  // the last used first
    total += entry.bytes;
    const bool stale = entry.temporary && nanoseconds(now) - entry.used_ns > kStaleNs;
    if (stale || (total > most_bytes_ && !entry.temporary)) {
      unlink(path(entry.name).c_str());
      total -= entry.bytes;
    }
  }
}

void keep_image(std::shared_ptr<ImageCopy> image) {
  struct Waiting {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::shared_ptr<ImageCopy>> images;
    u64 bytes = 0;  // of those and of the one that is being written
    bool started = false;
  };
  static auto& waiting = *new Waiting();  // the thread never ends
  const std::lock_guard lock(waiting.mutex);
  // A client that sends faster than that keeps less: what waits here is in no session's limits.
  if (waiting.bytes + image->bytes() > kMostWaiting) return;
  waiting.bytes += image->bytes();
  waiting.images.push_back(std::move(image));
  if (!waiting.started) {
    waiting.started = true;
    std::thread([] {
      for (;;) {
        std::unique_lock turn(waiting.mutex);
        waiting.changed.wait(turn, [] { return !waiting.images.empty(); });
        const std::shared_ptr<ImageCopy> next = std::move(waiting.images.front());
        waiting.images.pop_front();
        turn.unlock();
        image_store().keep(next->packed());
        turn.lock();
        waiting.bytes -= next->bytes();
      }
    }).detach();
  }
  waiting.changed.notify_one();
}

const ImageStore& image_store() {
  static const ImageStore store = [] {
    const char* folder = std::getenv("CUDA_CACHE_PATH");
    return ImageStore(folder == nullptr || *folder == 0 ? "" : std::string(folder) + "/gpupool-images");
  }();
  return store;
}

}  // namespace gpupool::worker
