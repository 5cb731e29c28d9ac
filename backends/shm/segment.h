// The memory that an engine shares with every peer on its host: its counters, which of its regions are alive, and one
// slot per peer by which the peer's copies are fenced.
//
// Fencing. A mapping cannot be taken back from another process, so a writer asks before every section of its copy:
//   writer: busy = region; if revoked or region dead: busy = 0, stop. Copy. Count. busy = 0.
//   owner:  revoked = 1 (or region = dead); if busy names no such region: nothing can land any more.
// Store-then-load on both sides, all seq_cst: one of the two sees the other. A writer frozen inside a section keeps
// `busy`, and the owner waits until it has gone on (and left the section) or its process is gone (pidfd).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "../core/counters.h"
#include "../core/handles.h"

namespace aio::shm {

inline constexpr std::uint64_t kSegmentMagic = 0x31676573'6f6961ull;  // "aioseg1"
inline constexpr std::uint32_t kRegionSlots = 1u << 16;
inline constexpr std::uint32_t kPeerSlots = 1u << 10;

// `offered` becomes `joined` by the writer and by nobody else, or `free` again by the owner: whoever comes first. So an
// offer that was withdrawn cannot be taken up, and a slot whose writer may still store to it serves no other.
enum class SlotState : std::uint64_t { free = 0, offered = 1, joined = 2, left = 3 };

struct alignas(64) PeerSlot {
  std::atomic<std::uint64_t> word;  // nonce of the offer | state (2 bits); `left` is the writer's last store
  std::atomic<std::uint32_t> revoked;
  std::atomic<std::uint32_t> busy;  // region slot + 1 while a section runs; kNotice for a count without payload

  static constexpr std::uint64_t pack(std::uint64_t nonce, SlotState state) noexcept {
    return nonce << 2 | static_cast<std::uint64_t>(state);
  }
  // One step of the protocol; false: the other side has been there.
  bool step(std::uint64_t nonce, SlotState from, SlotState to) noexcept {
    std::uint64_t expected = pack(nonce, from);
    return word.compare_exchange_strong(expected, pack(nonce, to), std::memory_order_acq_rel);
  }
};

inline constexpr std::uint32_t kNotice = UINT32_MAX;

struct Segment {
  std::uint64_t magic;
  std::uint64_t nbytes;
  CounterMemory counters;
  PeerSlot peers[kPeerSlots];
  std::atomic<std::uint32_t> regions[kRegionSlots];  // the live generation, 0: dead
};

// Our own segment: created, sealed against shrinking, kept while any driver uses it.
class OwnSegment {
 public:
  OwnSegment();

  [[nodiscard]] Segment* get() const noexcept { return static_cast<Segment*>(mapping_.base()); }
  [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }
  [[nodiscard]] int doorbell_fd() const noexcept { return doorbell_.get(); }
  [[nodiscard]] int process_fd() const noexcept { return process_.get(); }

 private:
  Fd memory_;
  Fd doorbell_;
  Fd process_;  // a pidfd of ourselves: what a peer cannot forge, and no reuse of our pid can fake
  Mapping mapping_;
};

// Map a memfd that a peer gave us, after checking that it cannot shrink under us (that would be a SIGBUS).
Mapping map_sealed(int fd, std::uint64_t offset, std::uint64_t nbytes, bool writable, const char* what);

}  // namespace aio::shm
