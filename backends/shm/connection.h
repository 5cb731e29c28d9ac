// Peers of this host, and slots of peers that have been disconnected.
#pragma once

#include <chrono>
#include <cstdint>

#include "../core/counters.h"
#include "../core/handles.h"
#include "wire.h"

namespace aio::shm {

struct Peer {
  PeerSlot* mine = nullptr;    // its slot in our segment: how we fence it
  PeerSlot* theirs = nullptr;  // our slot in its segment: how it fences us
  std::uint64_t my_nonce = 0;
  std::uint64_t their_nonce = 0;
  Segment* segment = nullptr;  // null until connected
  CounterTable counters;
  Mapping mapping;
  Fd doorbell;
  Fd process;
  int pid = 0;
};

// A disconnected peer's slot in our segment, until its process can no longer store to it.
struct RevokedSlot {
  PeerNumber peer;
  PeerSlot* slot;
  std::uint64_t nonce;
  Fd process;
  std::chrono::steady_clock::time_point since;
};

// Whether the process behind a pidfd has exited. One that is not known has not.
[[nodiscard]] bool has_exited(const Fd& process) noexcept;

}  // namespace aio::shm
