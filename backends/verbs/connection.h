// A peer: its two QPs and what is under way on them.
#pragma once

#include <chrono>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "queue.h"
#include "wire.h"

namespace aio::verbs {

using Clock = std::chrono::steady_clock;

inline constexpr std::uint32_t kMessageDepth = 64;    // of the message QP
inline constexpr std::uint32_t kSlots = 64;           // each way, shared by all peers
inline constexpr std::uint32_t kReservedSlots = 8;    // of the send slots: messages leave them to revocations
inline constexpr std::uint32_t kMaxSlotsPerPeer = 8;  // a peer's messages hold at most this many
inline constexpr std::size_t kMessageSlotNbytes = 16 << 10;
inline constexpr std::size_t kControlSlotNbytes = 64;      // the engine's messages leave by rail 0 alone
inline constexpr std::uint32_t kImmediateReceives = 4096;  // receives for immediates, shared by all peers

inline constexpr std::size_t kFlushWordNbytes = 8;

class VerbsDomain;

struct Peer {
  PeerNumber number;
  Queue data, messages;
  std::string blob;  // our end
  bool joined = false;
  std::string remote_blob;
  EndpointHead remote{};
  // A peer with fewer NICs has no partner for this one: its turn is served by another of ours. See join().
  VerbsDomain* served_by = nullptr;
  Outcome failure;  // not ok: the connection is over, and why; peer_lost whatever the cause was for whom it hit
  std::uint64_t read_nbytes = UINT64_MAX;  // larger reads are cut

  std::deque<std::pair<FrameKind, std::string>> outbox;  // frames that found no room
  std::uint32_t held_slots = 0;                          // slots held
  std::set<std::uint64_t> stale_serials;                 // serials of its own that it takes back
  // To be answered once everything of ours up to that number has retired.
  std::deque<std::pair<std::uint64_t, std::uint64_t>> revocations;  // number, serial

  std::uint64_t retired = 0, retired_at_last_tick = 0;  // requests; what stalls does not retire any
  std::uint64_t nbytes = 0;                             // of payload in flight
  std::optional<Clock::time_point> stalled_since;
};

}  // namespace aio::verbs
