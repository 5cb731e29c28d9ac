// Connections: connecting, fencing, teardown.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>

#include "domain.h"
#include "sockets.h"

namespace aio::libfabric {

namespace {

constexpr int kMaxRounds = 1000;  // one round handles up to 128 ready sockets

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

Peer* FabricDomain::find(PeerNumber number) noexcept {
  const auto found = peers_.find(number);
  return found == peers_.end() ? nullptr : found->second.get();
}

bool FabricDomain::is_reachable(PeerNumber number) const noexcept {
  const auto found = peers_.find(number);
  return !policy_.needs_handshake || found == peers_.end() || found->second->handshake_done();
}

Endpoint FabricDomain::connect(PeerNumber number, const std::optional<Endpoint>& remote) {
  Peer* peer = find(number);
  if (peer != nullptr && peer->disconnecting)
    throw Failure(Failure::Kind::usage, "connect", "the peer is being disconnected");
  const bool is_new = peer == nullptr;
  if (is_new) {
    auto created = std::make_unique<Peer>();
    peer = created.get();
    std::random_device random;
    peer->number = number;
    peer->token = std::uint64_t{random()} << 32 | random();
    if (!shared_channel_) peer->own = open_channel(false, &handles_);
    peer->channel = shared_channel_ ? &*shared_channel_ : &*peer->own;
    write_blob(*peer);
    peers_.emplace(number, std::move(created));
    tokens_.emplace(peer->token, peer);
    if (peer->own) {
      for (std::uint32_t slot = 0; slot < peer->own->receives; ++slot) post_receive(*peer->own, peer, slot);
    }
  }
  if (remote) {
    try {
      join(*peer, *remote);
    } catch (const Failure&) {
      if (is_new) teardown(*peer);
      throw;
    }
  }
  return {peer->blob, {}};
}

void FabricDomain::join(Peer& peer, const Endpoint& remote) {
  if (peer.joined) {
    if (remote.blob == peer.remote_blob) return;
    throw Failure(Failure::Kind::usage, "connect", "the peer is already connected to another endpoint");
  }
  EndpointBlob blob = accept(peer, remote);
  peer.paired_nic().address = insert(blob);
  peer.paired_nic().token = blob.head.token;
  peer.remote = std::move(blob);
  peer.remote_blob = remote.blob;
  peer.joined = true;
  peer.handshake_since = Clock::now();
  // One side sends a query at once, so that the first write does not wait for the transport's handshake; if both did,
  // their connections would collide.
  if (policy_.needs_handshake || peer.token < peer.paired_nic().token) schedule_query(peer.paired_nic());
  has_deferred_work_ = true;
  std::vector<std::string> early_messages;
  early_messages.swap(peer.early_messages);
  for (const std::string& held : early_messages)
    on_frame(peer, reinterpret_cast<const std::byte*>(held.data()), held.size());
}

void FabricDomain::admit(PeerNumber number, const Endpoint& other) {
  Peer* peer = find(number);
  if (peer == nullptr || peer->disconnecting) return;
  const EndpointBlob blob = accept(*peer, other);
  const std::uint64_t token = blob.head.token;
  if (peer->find(token) != nullptr) return;
  RemoteNic nic;
  nic.token = token;
  nic.address = insert(blob);
  peer->nics.push_back(std::move(nic));
}

void FabricDomain::disconnect(PeerNumber number, bool lost) {
  Peer* peer = find(number);
  if (peer == nullptr) return sink_.fenced(number);
  if (!peer->disconnecting) peer->disconnecting_since = Clock::now();
  peer->disconnecting = true;
  peer->lost |= lost;
  resolve_suspended(*peer, &kConnectionClosed);
  // A shared endpoint cannot be closed for one peer: its operations end by themselves or by the device's timeout. If
  // closing blocks until then, wait for it here, and serve the other peers meanwhile.
  if (lost && peer->own && (!policy_.close_blocks || peer->in_flight == 0)) return fence(*peer);
  has_deferred_work_ = true;
}

void FabricDomain::teardown(Peer& peer) {
  peer.closing = true;
  if (peer.own) {
    // Over tcp this closes the listener and every connection. What was queued comes back as errors, and a frozen peer
    // that resumes later finds no listener at the port.
    if (policy_.close_forgets_connections) shut_down_connections(peer);
    // Completions queued for the queue pair are dropped with it, although their senders were told that they arrived
    // (efa); or the provider would handle them too late (rxm).
    if (policy_.close_drops_completions || policy_.drain_before_close) drain_completions();
    peer.own->endpoint.reset();
    drain_completions();
    for (Operation& operation : operations_) {
      if (operation.peer != &peer || operation.kind == Operation::Kind::idle) continue;
      const Purpose dropped = operation;
      if (operation.completed || policy_.close_drops_completions) {
        release_operation(operation);
      } else {  // dropped by the provider; a late completion must still find the operation
        operation.kind = Operation::Kind::abandoned;
        operation.peer = nullptr;
      }
      if (dropped.kind == Operation::Kind::piece) sink_.stopped(*dropped.flow, dropped.pieces, kConnectionClosed);
      if (dropped.kind == Operation::Kind::message) sink_.sent(dropped.message, kConnectionClosed);
    }
  }
  resolve_suspended(peer, &kConnectionClosed);
  for (RemoteNic& nic : peer.nics) {
    if (nic.address != abi::addr_unspec) av_->ops->remove(av_.get(), &nic.address, 1, 0);
  }
  tokens_.erase(peer.token);
  std::erase_if(unposted_receives_, [&peer](const auto& waiting) { return waiting.first == &peer; });
  peers_.erase(peer.number);
}

// fi_close() does not know the connections that the listener has accepted and that have sent no request yet. They keep
// a pointer to what fi_close() frees, and libfabric follows it when they send one, close or break: a crash. A peer that
// freezes or dies while connecting is enough, or a port scan. So they are shut down first, while the memory is valid.
// libfabric 1.18 to 2.6; ofiwg/libfabric#12709.
void FabricDomain::shut_down_connections(Peer& peer) {
  const std::vector<Socket> connections = shut_down_sockets(unpack_endpoint(peer.blob).address);
  const auto is_open = [](const Socket& connection) { return connection.open(); };
  // A connection without a request is closed in the first round that reaches it. What stays open belongs to an endpoint
  // and has unread data; fi_close() knows those. Reading zero completions drives libfabric without reporting anything.
  for (int round = 0; round < kMaxRounds && std::ranges::any_of(connections, is_open); ++round) {
    cq_->ops->read(cq_.get(), nullptr, 0);
  }
}

void FabricDomain::fence(Peer& peer) {
  const PeerNumber number = peer.number;
  teardown(peer);
  finish_deregistrations();  // the peer's replies are not waited for any more
  sink_.fenced(number);
}

}  // namespace aio::libfabric
