// A peer, its NICs, and the state of its connection.
#pragma once

#include <algorithm>
#include <chrono>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "endpoint.h"
#include "post.h"
#include "wire.h"

namespace aio::libfabric {

using Clock = std::chrono::steady_clock;

// An operation whose connection broke. Whether the peer refused a stale key, crashed, or merely reconnects is asked of
// the peer itself before the outcome is reported.
struct Suspended {
  Flow* flow;
  std::uint32_t pieces;
  TransferId message;
  std::uint64_t serial;
  int code;
};

// One NIC of a peer. One query to it is outstanding at a time, and its reply carries the same number. See memory.cpp.
struct RemoteNic {
  std::uint64_t token = 0;  // carried by frames in both directions
  std::uint64_t address = abi::addr_unspec;
  std::uint64_t wanted_query = 0, sent_query = 0, answered_query = 0;
  std::string query;
  Clock::time_point sent_at;
  int resends = 0;
  std::set<std::uint64_t> revocations,
      queried_serials;  // our serials that it must stop using; those in the outstanding query

  [[nodiscard]] bool query_pending() const noexcept { return wanted_query > answered_query; }
};

struct Peer {
  PeerNumber number;
  std::uint64_t token;         // ours, which its frames must carry
  std::optional<Channel> own;  // unless the domain shares one endpoint
  Channel* channel = nullptr;
  std::string blob;  // our endpoint
  bool joined = false;
  std::string remote_blob;
  // With Policy::needs_handshake: no write is posted before the reply to this query.
  std::uint64_t handshake_query = 1;
  Clock::time_point handshake_since;
  EndpointBlob remote;
  // The first is paired with our NIC. The others are paired with none of ours: they write to us, send queries and
  // answer them, and are never written to.
  std::vector<RemoteNic> nics = std::vector<RemoteNic>(1);

  std::uint32_t in_flight = 0;
  std::uint64_t nbytes_in_flight = 0;
  std::optional<Clock::time_point> stalled;  // since when it has accepted nothing
  std::deque<Operation*> unacknowledged;     // writes, in posting order

  std::vector<std::string> early_messages;  // messages that arrived before connect() identified their sender

  std::set<std::uint64_t> stale_serials;                     // of its regions that it has deregistered
  std::deque<std::pair<std::uint64_t, std::string>> outbox;  // frames, with the address that each goes to

  std::vector<Suspended> suspended;
  Clock::time_point suspended_at;
  std::uint64_t verdict_query = 0;

  bool disconnecting = false;  // disconnect() was called
  bool lost = false;           // and the peer is gone
  bool closing = false;        // its endpoint is being closed: every error means peer_lost
  Clock::time_point disconnecting_since;

  [[nodiscard]] RemoteNic& paired_nic() noexcept { return nics.front(); }
  [[nodiscard]] bool handshake_done() const noexcept { return nics.front().answered_query >= handshake_query; }
  [[nodiscard]] RemoteNic* find(std::uint64_t token) noexcept {
    const auto found = std::ranges::find(nics, token, &RemoteNic::token);
    return found == nics.end() ? nullptr : &*found;
  }
};

}  // namespace aio::libfabric
