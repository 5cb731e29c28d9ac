// Progress: completions, errors, and the periodic work per peer.
#include <algorithm>
#include <array>
#include <cerrno>

#include "domain.h"

namespace aio::libfabric {

namespace {

// Per call, so that arrivals alone do not keep the worker from posting.
constexpr std::size_t kMaxCompletionsPerPass = 1024;
// Nothing should arrive after a goodbye, since the peer has waited for its acknowledgements; this is for operations
// that need none.
constexpr auto kQuietPeriod = std::chrono::milliseconds(50);
constexpr auto kMaxDrainTime = std::chrono::seconds(1);
constexpr auto kMaxInFlightTime = std::chrono::seconds(30);  // longer than any timeout of a device

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

// The peer's side found no region for the key. EFA's device has a status of its own for it (efa_errno.h).
bool is_stale(const abi::CqErrorEntry& error, bool efa) noexcept {
  constexpr int efa_remote_bad_address = 7;
  return error.err == EACCES || error.err == EKEYREJECTED || error.err == ENOKEY || error.err == abi::err_nokey ||
         (efa && error.prov_errno == efa_remote_bad_address);
}

// EFA's device has retransmitted without a response.
bool is_unresponsive(const abi::CqErrorEntry& error) noexcept {
  constexpr int efa_unresponsive = 13, efa_unreachable = 15;  // efa_io_defs.h; unreachable: it had never responded
  return error.prov_errno == efa_unresponsive || error.prov_errno == efa_unreachable;
}

bool is_broken(int code) noexcept {
  return code == ECANCELED || code == ECONNRESET || code == EPIPE || code == ENOTCONN || code == ECONNABORTED ||
         code == ESHUTDOWN || code == EIO;
}

}  // namespace

bool FabricDomain::progress() {
  bool moved = poll_completions();
  std::vector<std::pair<Peer*, std::uint32_t>> unposted;
  unposted.swap(unposted_receives_);
  for (const auto& [peer, slot] : unposted)
    post_receive(peer == nullptr ? *shared_channel_ : *peer->channel, peer, slot);
  if (!has_deferred_work_) return moved;
  has_deferred_work_ = false;
  const auto now = Clock::now();
  std::vector<PeerNumber> numbers;  // a copy: service_peer() may remove a peer
  numbers.reserve(peers_.size());
  for (const auto& [number, peer] : peers_) numbers.push_back(number);
  for (const PeerNumber number : numbers) {
    if (Peer* peer = find(number)) moved |= service_peer(*peer, now);
  }
  return moved;
}

std::optional<std::vector<int>> FabricDomain::arm() {
  if (wait_fd_ < 0) return std::vector<int>{};
  // fi_cq(3): the descriptor may be waited on only after fi_trywait has found nothing queued.
  abi::Fid* fids[] = {cq_.fid()};
  if (fabric_->ops->trywait(fabric_.get(), fids, 1) != 0) return std::nullopt;
  return std::vector<int>{wait_fd_};
}

// Does what a peer needs after some time or when there is room; may remove it. Returns whether anything moved.
bool FabricDomain::service_peer(Peer& peer, Clock::time_point now) {
  bool moved = false;
  if (peer.joined) {
    for (RemoteNic& nic : peer.nics) queue_query(peer, nic, now);
    moved = flush_outbox(peer);
  }
  if (!peer.suspended.empty() && now - peer.suspended_at > verdict_) {
    const Outcome lost{Status::peer_lost, peer.suspended.front().code,
                       "its connection broke, and it does not reply over a new one"};
    resolve_suspended(peer, &lost);
    sink_.peer_failed(peer.number, lost);
    moved = true;
  }
  if (peer.disconnecting) {
    const bool quiet = now - std::max(last_arrival_, peer.disconnecting_since) > kQuietPeriod ||
                       now - peer.disconnecting_since > kMaxDrainTime;
    const bool still = peer.in_flight == 0;
    const bool waits = !peer.own || policy_.close_blocks;
    if ((still && peer.lost && peer.own) || (quiet && (still || !waits)) ||
        (peer.own && now - peer.disconnecting_since > kMaxInFlightTime)) {
      fence(peer);
      return true;
    }
  }
  has_deferred_work_ |=
      peer.disconnecting || !peer.suspended.empty() ||
      (peer.joined && (!peer.outbox.empty() || std::ranges::any_of(peer.nics, &RemoteNic::query_pending)));
  return moved;
}

bool FabricDomain::poll_completions() {
  std::array<abi::CqEntry, 64> entries;
  bool moved = false;
  for (std::size_t batch = 0; batch < kMaxCompletionsPerPass / entries.size(); ++batch) {
    const ssize_t count = cq_->ops->read(cq_.get(), entries.data(), entries.size());
    if (count == -abi::err_avail) {
      abi::CqErrorEntry error{};
      if (cq_->ops->readerr(cq_.get(), &error, 0) > 0) fail(error);
    } else if (count <= 0) {
      break;
    } else {
      for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) on_completion(entries[i]);
    }
    moved = true;
  }
  if (arrival_seen_) last_arrival_ = Clock::now();
  arrival_seen_ = false;
  return moved;
}

// Reads everything that is queued now. Each call reads part of it, while more may arrive.
void FabricDomain::drain_completions() {
  for (std::size_t round = 0; poll_completions() && round <= cq_entries_ / kMaxCompletionsPerPass; ++round) {
  }
}

void FabricDomain::on_completion(const abi::CqEntry& entry) {
  if ((entry.flags & abi::remote_cq_data) != 0 && (entry.flags & abi::recv) == 0) {
    arrival_seen_ = true;
    sink_.counted(static_cast<std::uint32_t>(entry.data));
    if (policy_.immediates_use_receives && entry.op_context != nullptr) repost_receive(Operation::of(entry.op_context));
    return;
  }
  if (entry.op_context == nullptr) return;
  Operation& operation = Operation::of(entry.op_context);
  if (operation.needs_ack && operation.peer != nullptr) return on_write_completed(operation);
  if (operation.kind != Operation::Kind::receive) return finish(operation, kDone);
  Peer* owner = operation.peer;
  Channel& channel = owner == nullptr ? *shared_channel_ : *owner->channel;
  arrival_seen_ = true;
  const std::byte* bytes = channel.at(operation.slot);
  if (entry.nbytes >= sizeof(FrameHeader) && entry.nbytes <= channel.slot_nbytes) {
    std::uint64_t token = 0;
    std::memcpy(&token, bytes, sizeof token);
    // A frame must carry a token that we gave out, and the token of the endpoint's own peer.
    const auto found = tokens_.find(token);
    if (found != tokens_.end() && (owner == nullptr || owner == found->second))
      on_frame(*found->second, bytes, entry.nbytes);
  }
  repost_receive(operation);
}

// Posts a consumed receive again.
void FabricDomain::repost_receive(Operation& operation) {
  Peer* owner = operation.peer;
  const std::uint32_t slot = operation.slot;
  release_operation(operation);
  if (owner == nullptr || !owner->closing)
    post_receive(owner == nullptr ? *shared_channel_ : *owner->channel, owner, slot);
}

// An error identifies its operation by op_context alone: not every provider sets the other fields.
void FabricDomain::fail(const abi::CqErrorEntry& error) {
  if (error.op_context == nullptr) return;
  Operation& operation = Operation::of(error.op_context);
  Peer* peer = operation.peer;
  if (operation.kind == Operation::Kind::receive)
    return repost_receive(operation);  // truncated: longer than any frame of ours
  if (operation.kind == Operation::Kind::abandoned) return release_operation(operation);
  if (operation.needs_ack) std::erase(peer->unacknowledged, &operation);
  const bool unresponsive = policy_.needs_handshake && is_unresponsive(error);
  if (unresponsive) mark_rail_unreachable(*peer);
  const bool broken = is_broken(error.err) && peer->own && !unresponsive;
  if (broken && !peer->disconnecting) suspend_unacknowledged(*peer, error.err);
  if (operation.kind == Operation::Kind::control) return finish(operation, kDone);
  if (peer->closing || peer->disconnecting) return finish(operation, kConnectionClosed);
  if (is_stale(error, policy_.device_checks_keys) ||
      (operation.serial != 0 && peer->stale_serials.contains(operation.serial))) {
    return finish(operation, {Status::stale_region, error.err,
                              std::string(library_.strerror(error.err)) + ": the peer has deregistered the region"});
  }
  if (broken) return suspend(operation, error.err);
  std::array<char, 128> text{};
  std::string reason = library_.strerror(error.err);
  const char* to_string = cq_->ops->strerror(cq_.get(), error.prov_errno, error.err_data, text.data(), text.size());
  if (to_string != nullptr && error.prov_errno != 0) reason += std::string("; ") + to_string;
  finish(operation, {Status::provider, error.err, std::move(reason)});
}

// The link between the two NICs is down, or one of them. Nothing more is written over it before the peer has replied
// again; the core uses the other rails meanwhile.
void FabricDomain::mark_rail_unreachable(Peer& peer) {
  if (!peer.handshake_done() || !peer.joined || peer.disconnecting) return;
  peer.handshake_query = peer.paired_nic().sent_query + 1;
  peer.handshake_since = Clock::now();
  schedule_query(peer.paired_nic());
}

// Handles the local completion of a write with Policy::delivery.
void FabricDomain::on_write_completed(Operation& operation) {
  operation.completed = true;
  if (operation.in_doubt) return suspend(operation, ECANCELED);
  if (operation.acknowledged) return finish(operation, kDone);
  if (!operation.requests_ack) return;
  std::deque<Operation*>& unacknowledged = operation.peer->unacknowledged;
  for (bool last = false; !last && !unacknowledged.empty();) {
    Operation& next = *unacknowledged.front();
    unacknowledged.pop_front();
    last = &next == &operation;
    next.acknowledged = true;
    if (next.completed) finish(next, kDone);
  }
}

// Holds the outcome back until the peer has said why the connection broke, or is lost.
void FabricDomain::suspend(Operation& operation, int code) {
  Peer& peer = *operation.peer;
  if (operation.kind != Operation::Kind::control) {
    if (peer.suspended.empty()) peer.suspended_at = Clock::now();
    peer.suspended.push_back({operation.flow, operation.pieces, operation.message, operation.serial, code});
    peer.verdict_query = peer.paired_nic().sent_query + 1;
    schedule_query(peer.paired_nic());
    operation.kind = Operation::Kind::control;
  }
  finish(operation, kDone);
}

// The connection broke: whether writes that had left arrived is unknown. Completions of the others are still to come.
void FabricDomain::suspend_unacknowledged(Peer& peer, int code) {
  std::deque<Operation*> unacknowledged;
  unacknowledged.swap(peer.unacknowledged);
  for (Operation* operation : unacknowledged) {
    operation->in_doubt = true;
    if (operation->completed) suspend(*operation, code);
  }
}

void FabricDomain::finish(Operation& operation, const Outcome& outcome) {
  const Purpose ended = operation;
  release_operation(operation);
  Peer* peer = ended.peer;
  if (peer == nullptr) return;  // abandoned
  --peer->in_flight;
  peer->nbytes_in_flight -= ended.nbytes;
  peer->stalled.reset();
  if (ended.kind == Operation::Kind::piece) {
    sink_.stopped(*ended.flow, ended.pieces, outcome);
    return;
  }
  if (ended.slot_held()) peer->channel->free_slots.push_back(ended.slot);
  if (ended.kind == Operation::Kind::message) sink_.sent(ended.message, outcome);
}

}  // namespace aio::libfabric
