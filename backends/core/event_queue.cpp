#include "event_queue.h"

namespace aio {

EventQueue::EventQueue(const Wiring& wiring) : counters_(wiring.counters, wiring.doorbell_fd) {
  // The loop counts as parked from the start: the first event must ring. seq_cst as every announcement (event_queue.h).
  wiring.counters->parked.store(1, std::memory_order_seq_cst);
}

void EventQueue::emit(Event event) {
  ring_.push(std::move(event));
  if (!in_pass_) return counters_.doorbell().ring();
  if (!unannounced_since_) unannounced_since_ = Clock::now();
}

void EventQueue::end_pass() {
  // Events that move from the overflow into the ring only now could not be announced before.
  if (overflows_ && !unannounced_since_) unannounced_since_ = Clock::now();
  overflows_ = ring_.flush();
  in_pass_ = false;
}

void EventQueue::notify_loop(std::chrono::microseconds at_least) {
  if (!unannounced_since_) return;
  if (at_least.count() > 0 && Clock::now() - *unannounced_since_ < at_least) return;
  unannounced_since_.reset();
  counters_.doorbell().ring();
}

void EventQueue::drain(std::vector<Event>& out, std::size_t limit) {
  auto& parked = counters_.memory()->parked;
  for (;;) {
    const bool all = ring_.pop(out, limit) && counters_.harvest(out, limit);
    if (!all || out.size() >= limit) {
      // The caller comes back by itself. relaxed: a producer that still sees 1 rings for nothing, which does no harm.
      parked.store(0, std::memory_order_relaxed);
      return;
    }
    // seq_cst: announce the parking, then look once more. A producer that pushed before it saw this did not ring.
    parked.store(1, std::memory_order_seq_cst);
    if (empty()) return;
  }
}

}  // namespace aio
