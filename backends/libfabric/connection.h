// A peer, its NICs, and what is under way to it.
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

// An operation whose connection broke: whether the peer refused a stale key, fell over or just reconnects is asked of
// the peer itself before anybody is told.
struct Suspended {
  Flow* flow;
  std::uint32_t pieces;
  TransferId message;
  std::uint64_t serial;
  int code;
};

// One NIC of a peer. Questions to it: one is open at a time, each answered by its number. See memory.cpp.
struct RemoteNic {
  std::uint64_t token = 0;  // what frames to it must quote, and what those from it say that they are from
  std::uint64_t address = abi::addr_unspec;
  std::uint64_t wanted_query = 0, sent_query = 0, on_reply = 0;
  std::string query;
  Clock::time_point sent_at;
  int resends = 0;
  std::set<std::uint64_t> revocations,
      queried_serials;  // serials of ours that it must forget; those in the open question

  [[nodiscard]] bool query_pending() const noexcept { return wanted_query > on_reply; }
};

struct Peer {
  PeerNumber number;
  std::uint64_t token;         // what it must quote
  std::optional<Channel> own;  // unless the domain shares one
  Channel* channel = nullptr;
  std::string blob;  // our end
  bool joined = false;
  std::string remote_blob;
  // Under Policy::greets: the answer before which nothing is written, and since when it is waited for.
  std::uint64_t handshake_query = 1;
  Clock::time_point handshake_since;
  EndpointBlob remote;
  // The first is the one that our NIC is paired with. None of ours is with the others: they write to us, and ask and
  // are asked, and are never written to.
  std::vector<RemoteNic> nics = std::vector<RemoteNic>(1);

  std::uint32_t in_flight = 0;
  std::uint64_t nbytes_in_flight = 0;
  std::optional<Clock::time_point> stalled;  // since when it took nothing
  std::deque<Operation*> unacknowledged;     // writes in the order of posting

  std::vector<std::string> early_messages;  // messages that came before connect() named their sender

  std::set<std::uint64_t> stale_serials;                     // serials of its own that it has deregistered
  std::deque<std::pair<std::uint64_t, std::string>> outbox;  // with the address that each goes to

  std::vector<Suspended> suspended;
  Clock::time_point suspended_at;
  std::uint64_t verdict_query = 0;

  bool disconnecting = false;  // disconnect() was called
  bool lost = false;           // and said that nobody is there any more
  bool closing = false;        // the endpoint is being closed: every error is peer_lost
  Clock::time_point disconnecting_since;

  [[nodiscard]] RemoteNic& paired_nic() noexcept { return nics.front(); }
  [[nodiscard]] bool handshake_done() const noexcept { return nics.front().on_reply >= handshake_query; }
  [[nodiscard]] RemoteNic* find(std::uint64_t token) noexcept {
    const auto found = std::ranges::find(nics, token, &RemoteNic::token);
    return found == nics.end() ? nullptr : &*found;
  }
};

}  // namespace aio::libfabric
