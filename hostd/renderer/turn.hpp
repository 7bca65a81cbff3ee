// When this session may use its GPU: by leases that the GPU's arbiter gives (hostd/pages/lease_page.hpp), as
// the CUDA sessions of the same vGPU have them (hostd/worker/gate.hpp). OpenGL's work is known to be done by
// fences instead of words that the GPU writes.
//
// A lease that is free costs a load for each command.
#pragma once

#include <deque>
#include <functional>

#include "hostd/pages/lease_page.hpp"
#include "hostd/renderer/backend.hpp"
#include "hostd/renderer/session.hpp"

namespace gpupool::renderer {

class LeaseTurn : public Turn {
 public:
  // Without a page (null) nothing is waited for. `look` is called while it waits, ten times a second: it ends
  // the process when the client has gone.
  LeaseTurn(pages::LeasePage* page, Backend& backend, std::function<void()> look)
      : page_(page), backend_(backend), look_(std::move(look)) {}
  void take() override;
  void submitted() override;
  // There is nothing to do. How long to sleep before asking again, in milliseconds; -1 for ever.
  int idle();

 private:
  struct Batch {
    u32 fence;
    u64 since_ns;
  };

  [[nodiscard]] bool is_free() const;
  [[nodiscard]] bool holds() const;
  bool is_orphan(u64 now_ns);
  bool fits(u64 now_ns);
  void ask();
  void nap(u32 turn);
  void settle(u64 now_ns);
  void ring();
  void set_busy(bool busy);
  void stop_watching();

  pages::LeasePage* page_;
  Backend& backend_;
  std::function<void()> look_;
  std::deque<Batch> flight_;
  bool watched_ = false;  // what is in flight is known
  bool busy_ = false;     // as the page says
  bool orphan_ = false;   // there is no arbiter
  u64 used_ = 0;          // the newest lease under which something was submitted
  u64 done_ = 0;          // the newest lease that will not be used any more
  u64 cost_ns_ = 0;       // of a batch
  u64 last_done_ns_ = 0;
  u64 empty_ns_ = 0;  // since when nothing is in flight
  u64 looked_ns_ = 0;
};

}  // namespace gpupool::renderer
