// A peer: its two QPs and the state of its connection.
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

inline constexpr std::uint32_t kMessageDepth = 64;    // send queue of the message QP
inline constexpr std::uint32_t kSlots = 64;           // each way, shared by all peers
inline constexpr std::uint32_t kReservedSlots = 8;    // send slots that messages leave to revocations
inline constexpr std::uint32_t kMaxSlotsPerPeer = 8;  // send slots that the messages of one peer may hold
inline constexpr std::size_t kMessageSlotNbytes = 16 << 10;
inline constexpr std::size_t kControlSlotNbytes = 64;      // rails other than 0 carry no messages of the engine
inline constexpr std::uint32_t kImmediateReceives = 4096;  // shared by all peers

inline constexpr std::size_t kFlushWordNbytes = 8;

class VerbsDomain;

struct Peer {
  PeerNumber number;
  Queue data, messages;
  std::string blob;  // our endpoint
  bool joined = false;
  std::string remote_blob;
  EndpointHead remote{};
  // Set if the peer has fewer NICs and this one is paired with none of them: that rail carries the traffic. See join().
  VerbsDomain* alternate_rail = nullptr;
  Outcome failure;  // not ok: the connection is over; always peer_lost, with the cause as its reason
  std::uint64_t read_nbytes = UINT64_MAX;  // longer reads are posted in segments

  std::deque<std::pair<FrameKind, std::string>> outbox;  // frames that did not fit
  std::uint32_t held_slots = 0;                          // send slots held by its messages
  std::set<std::uint64_t> stale_serials;                 // of its regions that it is deregistering
  // To be acknowledged once every request up to that number has retired.
  std::deque<std::pair<std::uint64_t, std::uint64_t>> revocations;  // number, serial

  std::uint64_t retired = 0, retired_at_last_tick = 0;  // requests; unchanged between two timer events: stalled
  std::uint64_t nbytes = 0;                             // payload in flight
  std::optional<Clock::time_point> stalled_since;
};

}  // namespace aio::verbs
