// The counter table: where arriving immediates become counts.
//
// It lives in memory that a peer on the same host may map, so that a shm write raises a counter of another process with
// one atomic add. All state is therefore position-independent, lock-free and valid when zero.
//
// An immediate is `counter id (24 bits) | counts - 1 (8 bits, high)`. Ids with bit 23 are private: the low 16 bits name
// a slot, the 7 above it the slot's generation, so that a late arrival for a forgotten counter is dropped and not given
// to the slot's next owner. Other ids are well-known: they find their slot in a small hash table from first sight, and
// are never removed, so nothing that came early is lost.
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

// Wakes a parked event loop, from this process or from a peer's. `parked` is shared; `fd` is each process's own.
struct Bell {
  std::atomic<std::uint32_t>* parked = nullptr;
  int fd = -1;

  void ring() const noexcept;  // at most one write per parking
};

// Bells to be rung later, all together. `parked` is left as it is until then: whoever takes it must wake its owner, and
// we may die in between.
struct HeldBells {
  bool holding = false;
  std::vector<Bell> bells;

  void ring_all() noexcept;
};

// One that waits with others while they are held.
struct Doorbell : Bell {
  HeldBells* held = nullptr;

  void ring() const noexcept;
};

struct CounterSlot {
  std::atomic<std::uint64_t> word;       // live bit and generation (8 bits) | counts (56 bits)
  std::atomic<std::uint64_t> threshold;  // 0: nobody waits
};

struct CounterMemory {
  std::atomic<std::uint32_t> parked;
  std::uint32_t reserved[15];
  std::atomic<std::uint64_t> dropped;  // arrivals for forgotten counters, or more well-known ids than there is room for
  std::atomic<std::uint64_t> counts;
  std::uint64_t reserved2[6];
  std::atomic<std::uint64_t> summary[(kSlots / 64 + 63) / 64];
  std::atomic<std::uint64_t> dirty[kSlots / 64];
  std::atomic<std::uint32_t> well_known[kWellKnownSlots];  // id + 1, 0: free
  CounterSlot slots[kSlots];
};

class CounterTable {
 public:
  CounterTable() = default;
  CounterTable(CounterMemory* memory, int doorbell_fd, HeldBells* held = nullptr)
      : memory_(memory), bell_{{&memory->parked, doorbell_fd}, held} {}

  // Any process, any thread: add counts and wake the owner if that reaches what it waits for. The payload the counts
  // stand for must have been written before, by this thread: the add releases it.
  void add(std::uint32_t id, std::uint64_t counts) noexcept;
  void add_immediate(std::uint32_t immediate) noexcept { add(immediate & kCounterIdMask, (immediate >> 24) + 1ull); }

  // -- the owner's event-loop thread only --

  // As Driver.expect. Throws Failure for a well-known id when the table is full of others.
  std::uint64_t expect(std::uint32_t id, std::int64_t counts);
  // Look at a counter until it has so many, or for so long; return what it has. It must have been armed once.
  std::uint64_t linger(std::uint32_t id, std::uint64_t counts, std::chrono::nanoseconds most) const;
  // Append at most `limit` events for counters that reached their threshold. True: none is left.
  bool harvest(std::vector<Event>& out, std::size_t limit);
  // Look at every armed counter as if it were dirty: a peer may have died between its add and its mark.
  void rescan() noexcept;
  [[nodiscard]] bool any_dirty() const noexcept;

  [[nodiscard]] const Doorbell& doorbell() const noexcept { return bell_; }
  [[nodiscard]] CounterMemory* memory() const noexcept { return memory_; }

 private:
  [[nodiscard]] int find(std::uint32_t id, bool insert) const noexcept;
  [[nodiscard]] std::uint32_t id_of(std::uint32_t slot) const noexcept;
  void mark(std::uint32_t slot) noexcept;

  CounterMemory* memory_ = nullptr;
  Doorbell bell_;
};

}  // namespace aio
