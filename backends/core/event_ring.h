// Ring buffer of events, from a core to the event loop: one producer at a time, which holds the core's lock, and one
// consumer.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "types.h"

namespace aio {

class EventRing {
 public:
  static constexpr std::uint32_t kSize = 4096;

  // Never loses an event: one that finds the ring full waits in a queue on the producer's side, until flush() moves it.
  void push(Event event) {
    if (!overflow_.empty() || full()) {
      overflow_.push_back(std::move(event));
      return;
    }
    put(std::move(event));
  }

  // Producer: moves events from that queue into the ring. Returns whether some still wait for room.
  bool flush() {
    while (!overflow_.empty() && !full()) {
      put(std::move(overflow_.front()));
      overflow_.pop_front();
    }
    return !overflow_.empty();
  }

  // Consumer: appends events until `out` holds `limit`. True: the ring was emptied.
  bool pop(std::vector<Event>& out, std::size_t limit) {
    std::uint32_t tail = tail_.load(std::memory_order_relaxed);  // only this thread stores it
    // acquire pairs with the store in put(): the slots are written.
    const std::uint32_t head = head_.load(std::memory_order_acquire);
    while (tail != head && out.size() < limit) out.push_back(std::move(slots_[tail++ % kSize]));
    tail_.store(tail, std::memory_order_release);  // pairs with full(): the slots may be written again
    return tail == head;
  }

  // Consumer, after it has announced that it parks: seq_cst pairs with the producer, which pushes, then loads `parked`.
  [[nodiscard]] bool empty() const noexcept {
    return head_.load(std::memory_order_seq_cst) == tail_.load(std::memory_order_relaxed);
  }

 private:
  // acquire pairs with pop(): a slot is written again only after it was read.
  [[nodiscard]] bool full() const noexcept {
    return head_.load(std::memory_order_relaxed) - tail_.load(std::memory_order_acquire) == kSize;
  }

  void put(Event event) {
    const std::uint32_t head = head_.load(std::memory_order_relaxed);  // stored under the core's lock only
    slots_[head % kSize] = std::move(event);
    head_.store(head + 1, std::memory_order_seq_cst);  // releases the slot, and comes before the load of `parked`
  }

  // A cache line each: producer and consumer would slow each other down.
  alignas(64) std::atomic<std::uint32_t> head_{0};
  alignas(64) std::atomic<std::uint32_t> tail_{0};
  std::deque<Event> overflow_;
  std::array<Event, kSize> slots_{};
};

}  // namespace aio
