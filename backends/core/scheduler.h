// Scheduler: which flow of which peer moves next. Per rail a lane for every peer, served round robin, so that a slow or
// dead peer never holds up another; per transfer, when it has ended.
//
// Everything here is called with the core's lock held.
#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "domain.h"
#include "event_queue.h"
#include "transfer.h"

namespace aio {

// Waking a sleeping loop takes some microseconds of the thread that does it. While a worker has more to copy, the end
// of one batch is announced together with the next one's, unless it has waited for so long.
inline constexpr std::chrono::microseconds kNotifyDelay{100};
// With more transfers in flight, the event loop has enough to do: the worker drives them.
inline constexpr std::size_t kMaxTransfersOfLoop = 2;

struct SchedulerStatistics {
  std::uint64_t transfers, writes, reads, nbytes, inline_batches, handed_over, failed;
};

class Scheduler {
 public:
  struct Message {
    TransferId id;
    std::string payload;
  };
  // What waits for one peer on one rail.
  struct Lane {
    PeerNumber peer;
    std::deque<Flow*> flows;
    std::deque<Message> messages;
    bool queued = false;  // in Rail::active
  };
  struct Rail {
    Domain* domain;
    std::unordered_map<PeerNumber, Lane> lanes;
    std::deque<Lane*> active;  // lanes with something to move, in the order of their turns
  };

  explicit Scheduler(EventQueue& events) : events_(events) {}

  void add_rail(Domain& domain) { rails_.push_back(Rail{&domain, {}, {}}); }
  [[nodiscard]] std::vector<Rail>& rails() noexcept { return rails_; }
  [[nodiscard]] std::size_t in_flight() const noexcept { return transfers_.size(); }
  [[nodiscard]] const SchedulerStatistics& statistics() const noexcept { return statistics_; }

  void add_peer(PeerNumber peer);
  // Fails what waits for the peer, and disconnects its domains.
  void remove_peer(PeerNumber peer, bool lost);

  // Whether the calling thread may post so much itself.
  [[nodiscard]] bool is_small(std::uint64_t nbytes, std::size_t pieces, const Run* runs, std::size_t n_runs) const {
    for (const Run* run = runs; run != runs + n_runs; ++run) {
      const auto& attributes = rails_[run->rail].domain->attributes();
      if (nbytes > attributes.inline_nbytes || pieces > attributes.inline_pieces) return false;
    }
    return true;
  }
  // Posts what it can at once. Returns null if the transfer goes on or has failed: an event follows. Otherwise all of
  // it is done and well, and no event comes: the caller gets it back.
  std::unique_ptr<Transfer> post_inline(std::unique_ptr<Transfer> transfer);
  // Queues transfers that a caller has left to the worker.
  void admit(std::vector<std::unique_ptr<Transfer>> transfers);
  void send(PeerNumber peer, TransferId id, std::string payload);

  // One turn of every lane that has something to move. Returns whether anything moved. `yields` is asked after each
  // turn and returns true if a caller waits for the lock.
  template <class Yields>
  bool serve(Rail& rail, const Yields& yields);
  // Whether the worker must drive what was posted inline, or may well do so in parallel to a loop that goes on posting.
  [[nodiscard]] bool needs_worker() const;

  // As Sink::stopped.
  void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome);
  // As Sink::sent.
  void sent(TransferId message, const Outcome& outcome);

 private:
  class Hold;

  void start(Transfer& transfer);
  void enqueue(Flow& flow);
  [[nodiscard]] std::uint16_t select_rail(PeerNumber peer, std::uint16_t planned) const noexcept;
  static void activate(Rail& rail, Lane& lane);
  bool serve_lane(Rail& rail, Lane& lane, std::uint32_t budget);
  bool send_messages(Rail& rail, Lane& lane);
  void retire_if_stopped(Flow& flow);
  void release(Transfer& transfer);

  EventQueue& events_;
  std::vector<Rail> rails_;
  std::unordered_map<TransferId, std::unique_ptr<Transfer>> transfers_;  // but those that are posted inline, meanwhile
  SchedulerStatistics statistics_{};
};

template <class Yields>
bool Scheduler::serve(Rail& rail, const Yields& yields) {
  bool moved = false;
  const std::uint32_t quantum = rail.domain->attributes().quantum;
  for (std::size_t left = rail.active.size(); left > 0 && !rail.active.empty(); --left) {
    Lane& lane = *rail.active.front();
    rail.active.pop_front();
    moved |= serve_lane(rail, lane, quantum);
    events_.notify_loop(kNotifyDelay);
    if (lane.flows.empty() && lane.messages.empty()) {
      lane.queued = false;
    } else {
      rail.active.push_back(&lane);
    }
    if (yields()) return true;
  }
  return moved;
}

}  // namespace aio
