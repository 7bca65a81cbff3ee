// What is kept of images, and that nothing else than what was kept comes back.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "hostd/worker/image_store.hpp"

namespace gpupool::worker {

namespace {

namespace fs = std::filesystem;

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/gpupool-store-XXXXXX";
    REQUIRE(mkdtemp(name) != nullptr);
    root_ = name;
  }
  ~Folder() { fs::remove_all(root_); }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  [[nodiscard]] std::string images() const { return root_ + "/images"; }
  [[nodiscard]] std::vector<fs::path> files() const {
    std::vector<fs::path> found;
    for (const auto& entry : fs::directory_iterator(images())) found.push_back(entry.path());
    return found;
  }

 private:
  std::string root_;
};

std::vector<u8> image(u64 bytes, u8 seed) {
  std::vector<u8> data(bytes);
  for (u64 i = 0; i < bytes; ++i) data[i] = static_cast<u8>(i * 31 + seed);
  return data;
}

bool has(const ImageStore& store, const std::vector<u8>& wanted) {
  const std::unique_ptr<u8[]> got = store.load(wire::sha256(wanted), wanted.size());
  return got != nullptr && std::equal(wanted.begin(), wanted.end(), got.get());
}

// Files are told apart by when they were used; the clock of some file systems is coarse.
void used_seconds_ago(const fs::path& file, int seconds) {
  fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::seconds(seconds));
}

}  // namespace

TEST_CASE("an image that was kept is found by its name and size, by any store of that folder") {
  const Folder folder;
  const std::vector<u8> one = image(5000, 1);
  const std::vector<u8> other = image(5000, 2);
  const ImageStore store(folder.images());
  CHECK(store.sizes().empty());
  CHECK_FALSE(has(store, one));
  store.keep(one);
  store.keep(one);
  CHECK(store.sizes() == std::vector<u64>{5000});
  const ImageStore next(folder.images());
  CHECK(has(next, one));
  CHECK_FALSE(has(next, other));
  CHECK(next.load(wire::sha256(one), 4999) == nullptr);
  struct stat facts {};
  REQUIRE(stat(folder.files().at(0).c_str(), &facts) == 0);
  CHECK((facts.st_mode & 0777) == 0600);
}

TEST_CASE("a damaged image is not given out, and goes") {
  for (const bool shorter : {false, true}) {
    const Folder folder;
    const std::vector<u8> one = image(5000, 1);
    const ImageStore store(folder.images());
    store.keep(one);
    const fs::path file = folder.files().at(0);
    if (shorter)
      fs::resize_file(file, 4000);
    else
      std::fstream(file, std::ios::in | std::ios::out).seekp(4321).put('x');
    CHECK_FALSE(has(store, one));
    if (!shorter) CHECK(folder.files().empty());
    fs::remove(file);
    store.keep(one);
    CHECK(has(store, one));
  }
}

TEST_CASE("a link in an image's place leads nowhere") {
  const Folder folder;
  const std::vector<u8> one = image(5000, 1);
  const ImageStore store(folder.images());
  store.keep(one);
  const fs::path file = folder.files().at(0);
  fs::rename(file, file.parent_path() / "elsewhere");
  fs::create_symlink(file.parent_path() / "elsewhere", file);
  CHECK_FALSE(has(store, one));
  CHECK(store.sizes().empty());
  fs::remove(file);
  REQUIRE(mkfifo(file.c_str(), 0600) == 0);  // opening it must not wait for a writer
  CHECK_FALSE(has(store, one));
}

TEST_CASE("the images that were not used for the longest time go when there is no room") {
  const Folder folder;
  const ImageStore store(folder.images(), 10'000);
  std::vector<std::vector<u8>> images;
  for (u8 i = 0; i < 4; ++i) {
    images.push_back(image(2400, i));
    store.keep(images.back());
    for (const fs::path& file : folder.files()) used_seconds_ago(file, 100 - i);
  }
  for (const fs::path& file : folder.files()) used_seconds_ago(file, 50);
  CHECK(has(store, images[0]));  // and so it counts as used
  store.keep(image(2400, 9));
  CHECK(store.sizes().size() == 4);
  CHECK(has(store, images[0]));
  CHECK(has(store, image(2400, 9)));
  store.keep(image(2501, 3));  // more than a quarter of all
  CHECK(store.sizes().size() == 4);
}

TEST_CASE("what a worker that was killed left behind goes after a while") {
  const Folder folder;
  const ImageStore store(folder.images());
  store.keep(image(100, 1));
  for (const char* name : {"new-1-0", "new-1-1"}) std::ofstream(folder.images() + "/" + name) << "half";
  used_seconds_ago(folder.images() + "/new-1-0", 7200);
  store.keep(image(100, 2));
  CHECK_FALSE(fs::exists(folder.images() + "/new-1-0"));
  CHECK(fs::exists(folder.images() + "/new-1-1"));
  CHECK(store.sizes() == std::vector<u64>{100, 100});
}

TEST_CASE("several keep, read and make room at the same time") {
  const Folder folder;
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int thread = 0; thread < 4; ++thread)
    threads.emplace_back([&folder, &wrong] {
      const ImageStore store(folder.images(), 40'000);
      for (u8 i = 0; i < 30; ++i) {
        const std::vector<u8> one = image(4000, i);
        store.keep(one);
        const std::unique_ptr<u8[]> got = store.load(wire::sha256(one), one.size());
        if (got != nullptr && !std::equal(one.begin(), one.end(), got.get())) ++wrong;
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(wrong == 0);
  CHECK(ImageStore(folder.images(), 40'000).sizes().size() <= 11);
  for (const fs::path& file : folder.files()) CHECK_FALSE(file.filename().string().starts_with("new-"));
}

TEST_CASE("without a folder, or where it cannot be written, nothing is kept") {
  const std::vector<u8> one = image(5000, 1);
  for (const char* folder : {"", "/proc/nowhere/images"}) {
    const ImageStore store(folder);
    store.keep(one);
    CHECK_FALSE(has(store, one));
    CHECK(store.sizes().empty());
  }
}

}  // namespace gpupool::worker
