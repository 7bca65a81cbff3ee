// Descriptors from the client: what is taken and what ends the session.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <iterator>
#include <thread>

#include "hostd/worker/parcels.hpp"
#include "wire/cpp/parcel.hpp"

using namespace gpupool;
using namespace gpupool::worker;

namespace {

struct Pair {
  Pair() { REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0); }
  ~Pair() {
    close(ends[0]);
    close(ends[1]);
  }
  int ends[2] = {-1, -1};
};

// Sends `bytes` of the parcel with so many copies of /dev/null.
void send_parcel(int socket, const wire::Parcel& parcel, int copies, size_t bytes = sizeof(wire::Parcel)) {
  const Descriptor file(open("/dev/null", O_RDWR | O_CLOEXEC));
  const int fds[3] = {file.get(), file.get(), file.get()};
  iovec piece{const_cast<wire::Parcel*>(&parcel), bytes};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  if (copies != 0) {
    const size_t size = sizeof(int) * static_cast<size_t>(copies);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* rights = CMSG_FIRSTHDR(&message);
    rights->cmsg_level = SOL_SOCKET;
    rights->cmsg_type = SCM_RIGHTS;
    rights->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(rights), fds, size);
  }
  REQUIRE(sendmsg(socket, &message, 0) == static_cast<ssize_t>(bytes));
}

wire::Parcel numbered(u64 id) {
  wire::Parcel parcel;
  parcel.id = id;
  return parcel;
}

}  // namespace

TEST_CASE("parcels: a descriptor is taken once, by its number") {
  Pair pair;
  Parcels parcels;
  send_parcel(pair.ends[0], numbered(7), 1);
  send_parcel(pair.ends[0], numbered(9), 1);
  CHECK(parcels.receive(pair.ends[1]));
  CHECK(parcels.receive(pair.ends[1]));
  const Descriptor nine = parcels.take(9);
  struct stat facts {};
  CHECK(fstat(nine.get(), &facts) == 0);
  CHECK(S_ISCHR(facts.st_mode));
  CHECK((fcntl(nine.get(), F_GETFD) & FD_CLOEXEC) != 0);
  CHECK(parcels.take(7).get() >= 0);
  CHECK(parcels.take(7).get() < 0);
}

TEST_CASE("parcels: the handler waits for one that is on its way") {
  Pair pair;
  Parcels parcels;
  std::thread late([&] {
    send_parcel(pair.ends[0], numbered(1), 1);
    while (!parcels.receive(pair.ends[1])) {
    }
  });
  CHECK(parcels.take(1).get() >= 0);
  late.join();
}

TEST_CASE("parcels: anything else is refused") {
  wire::Parcel wrong = numbered(1);
  wrong.magic = 1;
  const auto taken = [](const wire::Parcel& parcel, int copies, size_t bytes) {
    Pair pair;
    Parcels parcels;
    send_parcel(pair.ends[0], parcel, copies, bytes);
    return parcels.receive(pair.ends[1]);
  };
  CHECK(taken(numbered(1), 1, sizeof(wire::Parcel)));
  CHECK_FALSE(taken(numbered(1), 0, sizeof(wire::Parcel)));
  CHECK_FALSE(taken(numbered(1), 2, sizeof(wire::Parcel)));
  CHECK_FALSE(taken(numbered(1), 1, 5));
  CHECK_FALSE(taken(wrong, 1, sizeof(wire::Parcel)));
}

TEST_CASE("parcels: of descriptors that nobody asked for none stays open") {
  const auto open_files = [] {
    const std::filesystem::directory_iterator files("/proc/self/fd");
    return std::distance(begin(files), end(files));
  };
  for (const int copies : {2, 3}) {  // two come through, where there is room for one; the third is cut off
    Pair pair;
    Parcels parcels;
    const auto before = open_files();
    send_parcel(pair.ends[0], numbered(1), copies);
    CHECK_FALSE(parcels.receive(pair.ends[1]));
    CHECK(open_files() == before);
  }
}

TEST_CASE("parcels: a number twice, or more than 64 that nobody takes, end the session") {
  Pair pair;
  Parcels parcels;
  send_parcel(pair.ends[0], numbered(1), 1);
  send_parcel(pair.ends[0], numbered(1), 1);
  CHECK(parcels.receive(pair.ends[1]));
  CHECK_FALSE(parcels.receive(pair.ends[1]));
  for (u64 id = 2; id <= 64; ++id) {
    send_parcel(pair.ends[0], numbered(id), 1);
    CHECK(parcels.receive(pair.ends[1]));
  }
  send_parcel(pair.ends[0], numbered(65), 1);
  CHECK_FALSE(parcels.receive(pair.ends[1]));
}
