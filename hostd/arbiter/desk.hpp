// The pages of one GPU as the arbiter sees them: who is listed in the quota page, what their workers say, and
// what they are told.
//
// Invariant: of a page that a worker writes, each word is read once a look and is nothing but a yes, a no or
// a number to compare. A file that is cut short becomes a page of our own (main.cpp).
#pragma once

#include <string>
#include <vector>

#include "hostd/arbiter/turns.hpp"
#include "hostd/pages/lease_page.hpp"
#include "hostd/pages/quota_page.hpp"

namespace gpupool::arbiter {

class Desk {
 public:
  // `folder`: an open descriptor of STATE_DIR/gpus/UUID, where the pages are files.
  explicit Desk(int folder) : folder_(folder) {}
  Desk(const Desk&) = delete;
  Desk& operator=(const Desk&) = delete;
  ~Desk();

  // Maps the quota page; false with `error` while there is none.
  bool open(std::string& error);
  // Looks at the quota page if it has changed, and which workers live. True when tenants or sessions are
  // others now.
  bool refresh();
  [[nodiscard]] const std::vector<Tenant>& tenants() const { return tenants_; }
  // Those that have a page, in a fixed order.
  [[nodiscard]] std::vector<Session> sessions() const;
  [[nodiscard]] bool has_sessions() const { return !seats_.empty(); }

  // What the worker of each session says.
  [[nodiscard]] std::vector<Signals> listen();
  // Tells the worker of each session.
  void tell(const Turns& turns, u64 now_ns);
  // Until somebody says something, or that much time has passed.
  void wait(u64 timeout_ns);
  // Nobody has to wait any more: the arbiter leaves.
  void leave();

 private:
  // A session: its page, and its worker.
  struct Seat {
    Session session;
    pages::LeasePage* page = nullptr;
    u32 bell = 0;  // as last heard
  };

  void read_page();
  bool sit(Seat& seat);
  static void rise(Seat& seat);
  static void say(pages::LeasePage& page, pages::LeaseState state, const Lease& lease, u64 now_ns);

  const int folder_;
  const pages::QuotaPage* quota_ = nullptr;
  u32 changed_ = 0;
  bool read_ = false;
  bool arbitrates_ = false;
  u64 looked_ns_ = 0;
  std::vector<Tenant> tenants_;
  std::vector<Seat> seats_;
  std::vector<u64> pageless_;  // sessions that are listed and have no page
  bool waits_on_many_ = true;  // futex_waitv: Linux 5.16
};

}  // namespace gpupool::arbiter
