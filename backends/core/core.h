// The core drives the domains of one backend: it queues flows per peer, posts them fairly, counts what arrives and
// reports what ended. One worker thread, which never takes the interpreter's lock; where descriptors tell of arrivals,
// the event loop sees to those that come while both sleep (loop_watch.h).
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "core_options.h"
#include "counters.h"
#include "domain.h"
#include "event_ring.h"
#include "handles.h"
#include "loop_watch.h"
#include "wiring.h"

namespace aio {

// One batch. Done when every flow's pieces have stopped; an error is reported only then (contract 6).
struct Transfer {
  TransferId id = 0;
  std::uint64_t nbytes = 0;
  std::uint32_t unfinished = 0;  // flows that may still move
  bool posting = false;          // post_inline is still on the stack: a clean end needs no event
  std::vector<Piece> pieces;
  std::deque<Flow> flows;  // stable addresses
  Outcome outcome;
};

// How long an event loop may look at a counter before it goes to sleep, if it is told to spin.
inline constexpr std::chrono::microseconds kLinger{100};

struct CoreStatistics {
  std::uint64_t transfers, writes, reads, nbytes, inline_batches, handed_over, failed, counts, dropped, handles, queued,
      loop_passes;
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
  // One transfer per run, numbered from `first` on, so that one that fails fails no other. Returns which go on, or
  // have ended badly: events follow for those.
  std::vector<std::uint32_t> post_each(TransferId first, const Run* runs, std::size_t n_runs, const Piece* pieces,
                                       std::size_t n_pieces);
  void send(PeerNumber peer, TransferId message, std::string payload);
  std::uint64_t expect(std::uint32_t counter, std::int64_t counts) { return counters_.expect(counter, counts); }
  std::uint64_t linger(std::uint32_t counter, std::uint64_t counts) const {
    return counters_.linger(counter, counts, kLinger);
  }
  [[nodiscard]] int fileno() const noexcept { return watch_ ? watch_->fd() : counters_.doorbell().fd; }
  void drain(std::vector<Event>& out, std::size_t limit);
  CoreStatistics statistics();

 private:
  struct Message {
    TransferId id;
    std::string payload;
  };
  // What waits to leave by one rail for one peer.
  struct Lane {
    PeerNumber peer;
    std::deque<Flow*> flows;
    std::deque<Message> messages;
    bool queued = false;  // in Rail::active
  };
  struct Rail {
    Domain* domain;
    std::unordered_map<PeerNumber, Lane> lanes;
    std::deque<Lane*> active;  // round robin: one slow or dead peer never stalls another
  };
  // What is there to do before anything else happens.
  struct Outlook {
    bool work = false;             // now
    bool must_poll = false;        // soon: no descriptor will tell
    std::vector<int> descriptors;  // that tell of the rest

    [[nodiscard]] bool idle() const noexcept { return !work && !must_poll; }
  };

  void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) override;
  void counted(std::uint32_t immediate) override;
  void message(PeerNumber peer, std::string payload) override;
  void sent(TransferId message, const Outcome& outcome) override;
  void released(RegionNumber region) override;
  void fenced(PeerNumber peer) override;
  void peer_failed(PeerNumber peer, const Outcome& outcome) override;

  void emit(Event event);
  void settle(Flow& flow);
  void finish(Transfer& transfer);
  [[nodiscard]] std::uint16_t way_to(PeerNumber peer, std::uint16_t rail) const noexcept;
  void enqueue(Flow& flow);
  std::unique_ptr<Transfer> assemble(TransferId id, const Run* runs, std::size_t n_runs, const Piece* pieces,
                                     std::size_t n_pieces);
  [[nodiscard]] bool is_small(std::uint64_t nbytes, std::size_t pieces, const Run* runs, std::size_t n_runs) const;
  bool post_inline(std::unique_ptr<Transfer> transfer);
  void admit(std::unique_ptr<Transfer> transfer);
  void start(Transfer& transfer);
  void activate(Rail& rail, Lane& lane);
  bool pump(Rail& rail);
  bool turn(Rail& rail, Lane& lane, std::uint32_t budget);
  bool send_messages(Rail& rail, Lane& lane);
  void take_inbox();
  void run() noexcept;
  bool pass();
  void see_to_arrivals();
  [[nodiscard]] bool needs_a_look() const;
  void tell(std::chrono::microseconds at_least);
  [[nodiscard]] Outlook look_ahead();
  void park(unsigned idle_rounds);
  void wake_worker() noexcept;

  // Taken by callers. The worker gives way to them, since a mutex alone lets it win every time.
  std::unique_lock<std::mutex> enter();

  Wiring wiring_;
  CoreOptions options_;
  CounterTable counters_;
  EventRing events_;
  Fd wake_fd_;
  std::optional<LoopWatch> watch_;  // where arrivals can wake the loop itself

  std::mutex mutex_;  // everything below, and every call into a domain
  std::vector<std::unique_ptr<Domain>> domains_;
  std::vector<Rail> rails_;
  std::unordered_map<TransferId, std::unique_ptr<Transfer>> transfers_;
  std::unordered_set<PeerNumber> peers_;  // connected
  std::unordered_set<RegionNumber> local_regions_;
  std::unordered_map<PeerNumber, unsigned> fences_;      // rails still to fence
  std::unordered_map<RegionNumber, unsigned> releases_;  // rails still to release
  bool events_waiting_ = false;                          // the ring was full: its overflow must be moved on
  bool in_pass_ = false;                                 // the worker's; what is emitted meanwhile is told at its end
  std::optional<std::chrono::steady_clock::time_point> bell_due_;
  unsigned unshared_ = 0;  // this many sleeps more the worker alone is told of arrivals
  bool stepping_ = false;  // without a worker: drain() moves things on, and a hook of the domain's may be running
  CoreStatistics stats_{};

  std::vector<std::unique_ptr<Transfer>> spare_;  // the engine's thread's: what it posts next needs no allocation

  std::mutex inbox_mutex_;
  std::vector<std::unique_ptr<Transfer>> inbox_;

  std::atomic<bool> stop_{false};
  std::atomic<bool> asleep_{false};
  std::atomic<unsigned> callers_{0};
  std::atomic<std::uint64_t> loop_passes_{0};  // in which the loop has seen to arrivals itself
  bool loop_leads_ = false;                    // the worker's: it did so when the worker slept last
  const int pid_;
  std::thread worker_;
};

}  // namespace aio
