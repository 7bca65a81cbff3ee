// The arbiter's side of the pages: what it makes of what workers write, lies too.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <random>

#include "hostd/arbiter/desk.hpp"
#include "wire/cpp/futex.hpp"

namespace gpupool::worker {
void drain_standard_error() {}  // what the log waits for in a worker
}  // namespace gpupool::worker

namespace gpupool::arbiter {
namespace {

using pages::LeasePage;
using pages::LeaseState;
using pages::QuotaPage;
using pages::SharePolicy;

// A GPU's folder, with the ends of hostd and of the workers.
class Folder {
 public:
  Folder() {
    char name[] = "/tmp/gpupool-desk-XXXXXX";
    path_ = mkdtemp(name);
    folder = open(path_.c_str(), O_RDONLY | O_DIRECTORY);
    quota = static_cast<QuotaPage*>(make("quota", QuotaPage::kBytes));
    quota->version = QuotaPage::kVersion;
    quota->magic = QuotaPage::kMagic;
  }
  ~Folder() {
    close(folder);
    std::filesystem::remove_all(path_);
  }
  LeasePage& add(u32 row, u64 vgpu, u32 share, SharePolicy policy, u32 pid = 0) {
    auto* page = static_cast<LeasePage*>(make(std::to_string(row + 1) + ".lease", LeasePage::kBytes));
    quota->vgpu[row].compute_percent = share;
    quota->vgpu[row].policy = policy;
    quota->vgpu[row].id = vgpu;
    quota->session[row].vgpu = row;
    quota->session[row].worker_pid = pid;
    quota->session[row].id = row + 1;
    ++quota->changed;
    return *page;
  }
  [[nodiscard]] std::string file(const std::string& name) const { return path_ + "/" + name; }

  int folder = -1;
  QuotaPage* quota = nullptr;

 private:
  void* make(const std::string& name, u64 bytes) {
    const int fd = open(file(name).c_str(), O_RDWR | O_CREAT, 0600);
    REQUIRE(ftruncate(fd, static_cast<off_t>(bytes)) == 0);
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    REQUIRE(at != MAP_FAILED);
    return at;
  }
  std::string path_;
};

// Some rounds of the arbiter's loop, at made-up times.
u64 turn(Desk& desk, Turns& turns, u64 now) {
  if (desk.refresh()) turns.set_sessions(desk.tenants(), desk.sessions(), now);
  u64 look = turns.step(now, desk.listen());
  desk.tell(turns, now);
  for (int i = 0; look <= now && i < 6; ++i) {
    look = turns.step(now, desk.listen());
    desk.tell(turns, now);
  }
  return look;
}

TEST_CASE("who wants gets a lease, and the other is shut out") {
  Folder folder;
  LeasePage& one = folder.add(0, 7, 50, SharePolicy::elastic);
  LeasePage& two = folder.add(1, 8, 50, SharePolicy::elastic);
  Desk desk(folder.folder);
  std::string error;
  REQUIRE(desk.open(error));
  Turns turns;
  one.want.wants = 1;
  turn(desk, turns, 1'000'000'000);
  CHECK(one.grant.state == LeaseState::held);
  CHECK(two.grant.state == LeaseState::shut);
  CHECK(one.grant.number == 1);
  CHECK(one.grant.end_ns > 1'000'000'000);
  CHECK(one.grant.beat_ns == 1'000'000'000);
  CHECK(one.grant.magic == LeasePage::kMagic);
  // It has gone on, works until the end of its lease and beyond: the other has to wait for the drain.
  one.want.wants = 0;
  one.want.busy = 1;
  two.want.wants = 1;
  turn(desk, turns, 1'050'000'000);
  CHECK(one.grant.state == LeaseState::shut);
  CHECK(two.grant.state == LeaseState::shut);
  one.want.busy = 0;
  turn(desk, turns, 1'051'000'000);
  CHECK(two.grant.state == LeaseState::held);
}

TEST_CASE("of two sessions of one vGPU one has its lease; one that takes another's row is known") {
  Folder folder;
  LeasePage& one = folder.add(0, 7, 50, SharePolicy::hard);
  LeasePage& two = folder.add(1, 8, 50, SharePolicy::hard);
  folder.quota->session[1].vgpu = 0;
  Desk desk(folder.folder);
  std::string error;
  REQUIRE(desk.open(error));
  Turns turns;
  one.want.wants = two.want.wants = 1;
  turn(desk, turns, 1'000'000'000);
  turn(desk, turns, 1'100'000'000);  // it has earned a lease
  CHECK(desk.tenants().size() == 1);
  CHECK(desk.sessions().size() == 2);
  LeasePage& holder = one.grant.state == LeaseState::held ? one : two;
  LeasePage& other = &holder == &one ? two : one;
  CHECK(holder.grant.state == LeaseState::held);
  CHECK(other.grant.state == LeaseState::shut);
  CHECK(one.grant.used_ns == two.grant.used_ns);
  // It has nothing to do any more: the other one has the rest.
  holder.want.wants = 0;
  turn(desk, turns, 1'101'000'000);
  CHECK(holder.grant.state == LeaseState::shut);
  CHECK(other.grant.state == LeaseState::held);
  CHECK(other.grant.number > holder.grant.number);
  // As many sessions and vGPUs as before, and still others.
  LeasePage& third = folder.add(2, 9, 50, SharePolicy::hard);
  folder.quota->session[2].id = 0;
  folder.quota->session[&other == &one ? 0 : 1].id = 3;
  ++folder.quota->changed;
  holder.want.wants = 1;
  third.want.wants = 1;
  turn(desk, turns, 1'102'000'000);
  CHECK(desk.sessions().size() == 2);
  CHECK((holder.grant.state == LeaseState::held) != (third.grant.state == LeaseState::held));
}

TEST_CASE("a vGPU without sessions, a session without a page, a worker that is gone") {
  Folder folder;
  LeasePage& one = folder.add(0, 7, 50, SharePolicy::hard);
  folder.add(1, 8, 50, SharePolicy::hard);
  folder.add(2, 9, 10, SharePolicy::hard, 0x7fff'fff0);  // no such process
  std::filesystem::remove(folder.file("2.lease"));
  Desk desk(folder.folder);
  std::string error;
  REQUIRE(desk.open(error));
  Turns turns;
  turn(desk, turns, 1'000'000'000);
  CHECK(desk.tenants().size() == 1);
  CHECK(one.grant.state == LeaseState::shut);
  folder.quota->session[0].id = 0;
  ++folder.quota->changed;
  turn(desk, turns, 1'100'000'000);
  CHECK(!desk.has_sessions());
}

TEST_CASE("nothing that a worker writes takes more than its vGPU's share from the other") {
  Folder folder;
  LeasePage& liar = folder.add(0, 7, 20, SharePolicy::elastic);
  LeasePage& honest = folder.add(1, 8, 80, SharePolicy::elastic);
  Desk desk(folder.folder);
  std::string error;
  REQUIRE(desk.open(error));
  Turns turns;
  std::mt19937_64 random(7);
  constexpr u64 kTick = 500'000;
  u64 mine = 0;
  for (u64 tick = 0; tick < 40'000; ++tick) {  // 20 s
    const u64 now = 1'000'000'000 + tick * kTick;
    // Every word of its side, and of the arbiter's, too: it can write them all.
    liar.want.wants = static_cast<u32>(random() % 3);
    liar.want.busy = static_cast<u32>(random());
    liar.want.done = random() % 2 == 0 ? random() : liar.grant.number.load();
    liar.want.bell = static_cast<u32>(random());
    if (random() % 8 == 0) liar.grant.end_ns = ~u64{0};
    if (random() % 8 == 0) liar.grant.state = static_cast<LeaseState>(random() % 4);
    if (random() % 8 == 0) liar.grant.number = random();
    honest.want.wants = honest.grant.state == LeaseState::held ? 0 : 1;
    honest.want.busy = honest.grant.state == LeaseState::held ? 1 : 0;
    turn(desk, turns, now);
    if (honest.grant.state == LeaseState::held) mine += kTick;
  }
  CHECK(static_cast<double>(mine) / (40'000 * kTick) > 0.75);
}

}  // namespace
}  // namespace gpupool::arbiter
