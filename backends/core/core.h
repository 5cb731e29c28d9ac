// Core: one driver's domains, their peers and regions, behind the methods of Driver. It posts what is small itself and
// leaves the rest to its worker; the parts are transfer.h, scheduler.h, event_queue.h and worker.h.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core_options.h"
#include "domain.h"
#include "event_queue.h"
#include "scheduler.h"
#include "transfer.h"
#include "wiring.h"
#include "worker.h"

namespace aio {

// How long an event loop that is set to spin polls a counter before it goes to sleep.
inline constexpr std::chrono::microseconds kSpinWait{100};

struct CoreStatistics : SchedulerStatistics {
  std::uint64_t counts, dropped, handles, queued, loop_passes;
};

class Core final : private Sink {
 public:
  Core(Wiring wiring, const CoreOptions& options, const DomainOpener& open);
  ~Core();  // stops the worker, then the domains; never waits for a peer

  [[nodiscard]] const std::vector<std::unique_ptr<Domain>>& domains() const noexcept { return domains_; }

  // -- as the methods of Driver; from the engine's thread only --
  std::vector<std::string> register_local(RegionNumber region, const LocalMemory& memory);
  void register_remote(RegionNumber region, PeerNumber peer, std::uint64_t nbytes, const std::vector<std::string>& keys,
                       const std::vector<int>& fds);
  void deregister(RegionNumber region);
  std::vector<Endpoint> connect(PeerNumber peer, const std::optional<std::vector<Endpoint>>& remote);
  void disconnect(PeerNumber peer, bool lost);
  bool post(TransferId id, const Run* runs, std::size_t n_runs, const Piece* pieces, std::size_t n_pieces);
  // One transfer per run, numbered from `first` on, so that one that fails fails no other. Returns the indices of runs
  // that go on, or have failed: events follow for those.
  std::vector<std::uint32_t> post_each(TransferId first, const Run* runs, std::size_t n_runs, const Piece* pieces,
                                       std::size_t n_pieces);
  void send(PeerNumber peer, TransferId message, std::string payload);
  std::uint64_t expect(std::uint32_t counter, std::int64_t counts) {
    return events_.counters().expect(counter, counts);
  }
  std::uint64_t spin_wait(std::uint32_t counter, std::uint64_t counts) const {
    return events_.counters().spin_wait(counter, counts, kSpinWait);
  }
  [[nodiscard]] int fileno() const noexcept { return worker_.fileno(); }
  void drain(std::vector<Event>& out, std::size_t limit);
  CoreStatistics statistics();

 private:
  void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) override;
  void counted(std::uint32_t immediate) override;
  void message(PeerNumber peer, std::string payload) override;
  void sent(TransferId message, const Outcome& outcome) override;
  void released(RegionNumber region) override;
  void fenced(PeerNumber peer) override;
  void peer_failed(PeerNumber peer, const Outcome& outcome) override;

  bool post_all_inline(std::vector<std::unique_ptr<Transfer>>& transfers, std::vector<std::uint32_t>& left);

  const Wiring wiring_;
  EventQueue events_;
  Scheduler scheduler_;
  Worker worker_;
  TransferPool pool_;  // the engine's thread's

  // With the worker's lock held.
  std::vector<std::unique_ptr<Domain>> domains_;
  std::unordered_set<PeerNumber> peers_;  // connected
  std::unordered_set<RegionNumber> local_regions_;
  std::unordered_map<PeerNumber, std::size_t> fences_;      // rails still to fence
  std::unordered_map<RegionNumber, std::size_t> releases_;  // rails still to release

  const int pid_;
};

}  // namespace aio
