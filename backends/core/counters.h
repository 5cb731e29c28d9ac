// Counter table: arriving immediates become counts in it.
//
// It lies in memory that a peer on the same host may map, so that a shm write raises a counter of another process with
// one atomic add. All state is therefore position-independent, lock-free and valid when zero.
//
// An immediate is `counter id (24 bits) | counts - 1 (8 bits, high)`. Ids with bit 23 are private: the low 16 bits name
// a slot, the 7 above it the slot's generation, so that a late arrival for a forgotten counter is dropped and not added
// to the slot's next counter. Other ids are well-known: they take a slot of a small hash table when first seen, and
// keep it, so that counts which arrive before the counter is opened are not lost.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <vector>

#include "types.h"

namespace aio {

inline constexpr std::uint32_t kCounterIdMask = (1u << 24) - 1;
inline constexpr std::uint32_t kPrivateBit = 1u << 23;
inline constexpr std::uint32_t kPrivateSlots = 1u << 16;
inline constexpr std::uint32_t kWellKnownSlots = 1u << 12;
inline constexpr std::uint32_t kSlots = kPrivateSlots + kWellKnownSlots;
inline constexpr std::uint32_t kGenerationMask = 0x7f;
inline constexpr std::uint64_t kCountsMask = (1ull << 56) - 1;

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

// Doorbell of an event loop: an eventfd that wakes it, and whether it is parked. `parked` is shared with peers; `fd` is
// each process's own.
struct Doorbell {
  std::atomic<std::uint32_t>* parked = nullptr;
  int fd = -1;

  void ring() const noexcept;  // at most one write per parking
};

// Doorbells that ring later, all together. `parked` stays as it is until then: a process that takes it back must ring,
// and this process may die in between.
struct DeferredDoorbells {
  bool holding = false;
  std::vector<Doorbell> bells;

  void ring_all() noexcept;
};

// A doorbell that waits with others while they are held.
struct DeferrableDoorbell : Doorbell {
  DeferredDoorbells* held = nullptr;

  void ring() const noexcept;
};

struct CounterSlot {
  std::atomic<std::uint64_t> word;       // live bit and generation (8 bits) | counts (56 bits)
  std::atomic<std::uint64_t> threshold;  // counts that are waited for; 0: none
};

struct CounterMemory {
  std::atomic<std::uint32_t> parked;  // the event loop sleeps, or is about to (event_queue.h)
  std::uint32_t reserved[15];
  std::atomic<std::uint64_t> dropped;  // arrivals for forgotten counters, or for ids that found no slot
  std::atomic<std::uint64_t> counts;
  std::uint64_t reserved2[6];
  std::atomic<std::uint64_t> summary[(kSlots / 64 + 63) / 64];  // a bit per word of `dirty` that is not zero
  std::atomic<std::uint64_t> dirty[kSlots / 64];                // a bit per slot that has reached its threshold
  std::atomic<std::uint32_t> well_known[kWellKnownSlots];       // id + 1, 0: free
  CounterSlot slots[kSlots];
};

class CounterTable {
 public:
  CounterTable() = default;
  CounterTable(CounterMemory* memory, int doorbell_fd, DeferredDoorbells* held = nullptr)
      : memory_(memory), bell_{{&memory->parked, doorbell_fd}, held} {}

  // Adds counts, and wakes the owner if they reach the threshold. From any process and any thread, which must have
  // written the payload that is counted: the add releases it.
  void add(std::uint32_t id, std::uint64_t counts) noexcept;
  void add_immediate(std::uint32_t immediate) noexcept { add(immediate & kCounterIdMask, (immediate >> 24) + 1ull); }

  // -- the owner's event-loop thread only --

  // As Driver.expect: arms the counter (counts > 0), reads it (0), or forgets it (< 0); returns its total. Throws
  // Failure for a well-known id where the table is full of others.
  std::uint64_t expect(std::uint32_t id, std::int64_t counts);
  // Polls a counter until it has so many counts, or for so long; returns its total. It must have been armed once.
  std::uint64_t spin_wait(std::uint32_t id, std::uint64_t counts, std::chrono::nanoseconds timeout) const;
  // Appends events for counters that have reached their threshold, until `out` holds `limit`. True: none is left.
  bool harvest(std::vector<Event>& out, std::size_t limit);
  // Marks every armed counter as dirty: a peer may have died between its add and its mark.
  void rescan() noexcept;
  [[nodiscard]] bool any_dirty() const noexcept;

  [[nodiscard]] const DeferrableDoorbell& doorbell() const noexcept { return bell_; }
  [[nodiscard]] CounterMemory* memory() const noexcept { return memory_; }

 private:
  [[nodiscard]] int find(std::uint32_t id, bool insert) const noexcept;
  [[nodiscard]] std::uint32_t id_of(std::uint32_t slot) const noexcept;
  void mark(std::uint32_t slot) noexcept;

  CounterMemory* memory_ = nullptr;
  DeferrableDoorbell bell_;
};

}  // namespace aio
