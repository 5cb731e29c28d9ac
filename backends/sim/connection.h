// Peers, and what is in flight between them and us.
#pragma once

#include <cstdint>
#include <string>

#include "../core/domain.h"
#include "wire.h"

namespace aio::sim {

inline const Outcome kPeerLost{Status::peer_lost, 0, "the connection is closed"};

struct Peer {
  std::uint64_t my_link = 0, their_link = 0;
  NodeId node = 0;      // theirs; 0: not joined
  std::string address;  // of its fabric's socket; empty: on the same fabric object
  std::uint32_t in_flight = 0;
  bool failed = false;
};

// A piece or a message that was posted. It has stopped when every packet of it was answered.
struct Operation {
  PeerNumber peer;
  Flow* flow;  // null: a message
  TransferId message;
  std::byte* target;  // of a read
  std::uint64_t nbytes;
  std::uint32_t unanswered;
  Outcome outcome;
};

// A peer's piece of which packets are still missing.
struct Arrival {
  std::uint32_t missing;
  bool refused = false;
};

// An arrived immediate that was not reported yet.
struct PendingCount {
  std::uint64_t link;
  std::uint32_t immediate;
};

// The fence of a disconnected peer, which comes after the counts of its connection.
struct PendingFence {
  PeerNumber peer;
  std::uint64_t link;
};

}  // namespace aio::sim
