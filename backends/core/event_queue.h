// Event queue: what the event loop learns from a core, and the doorbell that wakes it. Events of transfers, messages
// and peers come through a ring, counts through the counter table.
//
// Parking. The loop announces that it will sleep (`parked` = 1), then looks once more; a producer publishes, then takes
// `parked` back and rings if it was set. Both sides store first and load second, all seq_cst, so that at least one of
// them sees the other: no event is left behind by a loop that sleeps, and one that is awake costs no system call.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <vector>

#include "counters.h"
#include "event_ring.h"
#include "handles.h"
#include "wiring.h"

namespace aio {

// Produced under the core's lock, consumed by the event loop's thread without it.
class EventQueue {
 public:
  using Clock = std::chrono::steady_clock;

  explicit EventQueue(const Wiring& wiring);

  // -- producer --

  // Appends an event and rings, or, between begin_pass() and end_pass(), leaves the ringing to notify_loop().
  void emit(Event event);
  // A pass of the worker may emit many events, and one ring announces them all.
  void begin_pass() noexcept { in_pass_ = true; }
  void end_pass();
  // Rings for events that have waited for it for at least so long.
  void notify_loop(std::chrono::microseconds at_least);
  // Events that were emitted and did not fit into the ring wait for another pass.
  [[nodiscard]] bool overflows() const noexcept { return overflows_; }
  // For a loop that polls the domains itself: it drains right after, so that no event needs to ring meanwhile, and none
  // of those before it.
  void unpark_loop() noexcept { counters_.memory()->parked.store(0, std::memory_order_relaxed); }
  void drop_notification() noexcept { unannounced_since_.reset(); }
  // Wakes the loop even if it seems to be awake: a peer may have died after it took `parked` back, before it rang.
  void force_ring() const noexcept { signal_eventfd(counters_.doorbell().fd); }

  // -- consumer --

  // Appends up to `limit` events to `out`. Where it finds no more, the loop is parked: the next event rings.
  void drain(std::vector<Event>& out, std::size_t limit);
  [[nodiscard]] bool empty() const noexcept { return ring_.empty() && !counters_.any_dirty(); }
  void clear_doorbell() const noexcept { clear_eventfd(counters_.doorbell().fd); }
  [[nodiscard]] int doorbell_fd() const noexcept { return counters_.doorbell().fd; }

  [[nodiscard]] CounterTable& counters() noexcept { return counters_; }
  [[nodiscard]] const CounterTable& counters() const noexcept { return counters_; }

 private:
  CounterTable counters_;
  EventRing ring_;
  bool in_pass_ = false;
  bool overflows_ = false;
  std::optional<Clock::time_point> unannounced_since_;  // the oldest event that was not rung for
};

}  // namespace aio
