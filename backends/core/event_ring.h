// Events on their way from the core (one producer at a time: it holds the core's lock) to the event loop (one
// consumer).
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

  // Never loses an event: what finds the ring full waits in a queue of the producer's, which flush() moves on.
  void push(Event event) {
    if (!overflow_.empty() || full()) {
      overflow_.push_back(std::move(event));
      return;
    }
    put(std::move(event));
  }

  // Producer. Returns whether something still waits for room.
  bool flush() {
    while (!overflow_.empty() && !full()) {
      put(std::move(overflow_.front()));
      overflow_.pop_front();
    }
    return !overflow_.empty();
  }

  // Consumer. True: the ring was emptied.
  bool pop(std::vector<Event>& out, std::size_t limit) {
    std::uint32_t tail = tail_.load(std::memory_order_relaxed);
    // acquire pairs with the release in put(): the slot is written.
    const std::uint32_t head = head_.load(std::memory_order_acquire);
    while (tail != head && out.size() < limit) out.push_back(std::move(slots_[tail++ % kSize]));
    tail_.store(tail, std::memory_order_release);  // the slots may be written again
    return tail == head;
  }

  // Consumer, after announcing that it will park: seq_cst pairs with the producer's push-then-ring.
  [[nodiscard]] bool empty() const noexcept {
    return head_.load(std::memory_order_seq_cst) == tail_.load(std::memory_order_relaxed);
  }

 private:
  [[nodiscard]] bool full() const noexcept {
    return head_.load(std::memory_order_relaxed) - tail_.load(std::memory_order_acquire) == kSize;
  }

  void put(Event event) {
    const std::uint32_t head = head_.load(std::memory_order_relaxed);
    slots_[head % kSize] = std::move(event);
    head_.store(head + 1, std::memory_order_seq_cst);
  }

  alignas(64) std::atomic<std::uint32_t> head_{0};
  alignas(64) std::atomic<std::uint32_t> tail_{0};
  std::deque<Event> overflow_;
  std::array<Event, kSize> slots_{};
};

}  // namespace aio
