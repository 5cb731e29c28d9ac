// Layout of what an engine shares with the peers on its host: the segment with its counters, which of its regions are
// alive and one slot per peer that fences the peer's copies, and the blobs by which peers find all that.
//
// Fencing. A mapping cannot be taken back from another process, so a writer asks before every section of its copy:
//   writer: busy = region; if revoked or region dead: busy = 0, stop. Copy. Count. busy = 0.
//   owner:  revoked = 1 (or region = dead); if busy names no such region: nothing can land any more.
// Each side stores first and loads second, all seq_cst: one of the two sees the other. A writer that is frozen inside a
// section keeps `busy`, and the owner waits until it has left the section or its process has exited (pidfd).
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <string>

#include "../core/counters.h"

namespace aio::shm {

inline constexpr std::uint64_t kSegmentMagic = 0x31676573'6f6961ull;  // "aioseg1"
inline constexpr std::uint32_t kRegionSlots = 1u << 16;
inline constexpr std::uint32_t kPeerSlots = 1u << 10;
inline constexpr std::uint32_t kNotice = UINT32_MAX;  // PeerSlot::busy during counts without payload

// `offered` becomes `joined` by the writer alone, or `free` again by the owner: whichever is first. So an offer that
// was withdrawn cannot be accepted, and a slot whose writer may still store to it serves no other peer.
enum class SlotState : std::uint64_t { free = 0, offered = 1, joined = 2, left = 3 };

struct alignas(64) PeerSlot {
  std::atomic<std::uint64_t> word;  // nonce of the offer | state (2 bits); `left` is the writer's last store
  std::atomic<std::uint32_t> revoked;
  std::atomic<std::uint32_t> busy;  // region slot + 1 while a section is copied, or kNotice; 0: no section

  static constexpr std::uint64_t pack(std::uint64_t nonce, SlotState state) noexcept {
    return nonce << 2 | static_cast<std::uint64_t>(state);
  }
  // Takes one step of the protocol. Returns false where the other side has taken another.
  bool step(std::uint64_t nonce, SlotState from, SlotState to) noexcept {
    std::uint64_t expected = pack(nonce, from);
    // acq_rel: what was stored before a step is visible to the side that sees it and takes the next one.
    return word.compare_exchange_strong(expected, pack(nonce, to), std::memory_order_acq_rel);
  }
};

struct Segment {
  std::uint64_t magic;
  std::uint64_t nbytes;
  CounterMemory counters;
  PeerSlot peers[kPeerSlots];
  std::atomic<std::uint32_t> regions[kRegionSlots];  // generation of the region that is alive; 0: none is
};

struct RegionKey {
  std::uint32_t slot, generation, has_fd, version;
  std::uint64_t fd_offset, addr, nbytes;
};
static_assert(sizeof(RegionKey) == 40);

struct EndpointBlob {
  std::uint64_t magic;
  std::uint64_t slot;  // in our segment, for the peer
  std::uint64_t nonce;
};

template <class T>
std::string to_bytes(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

template <class T>
T from_bytes(const std::string& bytes, const char* what) {
  if (bytes.size() != sizeof(T)) {
    throw Failure(Failure::Kind::usage, what, "not what a shm engine of this version sends");
  }
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

}  // namespace aio::shm
