// Connecting, the questions peers ask each other below the contract, and fencing.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>

#include "domain.h"
#include "sockets.h"

namespace aio::libfabric {

namespace {

constexpr int kMostRounds = 1000;  // each serves 128 of the sockets that are ready, in turn

const Outcome kPeerLost{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

Peer* FabricDomain::find(PeerNumber number) noexcept {
  const auto found = peers_.find(number);
  return found == peers_.end() ? nullptr : found->second.get();
}

bool FabricDomain::reaches(PeerNumber number) const noexcept {
  const auto found = peers_.find(number);
  return !policy_.greets || found == peers_.end() || found->second->greeted();
}

Endpoint FabricDomain::connect(PeerNumber number, const std::optional<Endpoint>& remote) {
  Peer* peer = find(number);
  if (peer != nullptr && peer->leaving)
    throw Failure(Failure::Kind::usage, "connect", "the peer is being disconnected");
  const bool fresh = peer == nullptr;
  if (fresh) {
    auto made = std::make_unique<Peer>();
    peer = made.get();
    std::random_device random;
    peer->number = number;
    peer->token = std::uint64_t{random()} << 32 | random();
    if (!shared_) peer->own = open_channel(false, &handles_);
    peer->channel = shared_ ? &*shared_ : &*peer->own;
    std::array<char, 256> name{};
    std::size_t nbytes = name.size();
    abi::Ep* ep = peer->channel->endpoint.get();
    check("fi_getname", ep->cm->getname(&ep->fid, name.data(), &nbytes));
    EndpointBlob blob;
    blob.provider = kind();
    blob.address.assign(name.data(), nbytes);
    const bool virtual_addresses = (info_->domain_attr->mr_mode & abi::mr_virt_addr) != 0;
    blob.head = {kMagic,
                 info_->addr_format,
                 peer->token,
                 {virtual_addresses ? reinterpret_cast<std::uint64_t>(anchor_memory_) : 0, anchor_->key, 0},
                 static_cast<std::uint16_t>(blob.provider.size()),
                 static_cast<std::uint16_t>(nbytes)};
    peer->blob = pack(blob);
    peers_.emplace(number, std::move(made));
    tokens_.emplace(peer->token, peer);
    if (peer->own) {
      for (std::uint32_t slot = 0; slot < peer->own->receives; ++slot) post_receive(*peer->own, peer, slot);
    }
  }
  if (remote) {
    try {
      join(*peer, *remote);
    } catch (const Failure&) {
      if (fresh) fence_quietly(*peer);
      throw;
    }
  }
  return {peer->blob, {}};
}

void FabricDomain::join(Peer& peer, const Endpoint& remote) {
  if (peer.joined) {
    if (remote.blob == peer.remote_blob) return;
    throw Failure(Failure::Kind::usage, "connect", "the peer is already connected, at another endpoint");
  }
  EndpointBlob blob = accept(peer, remote);
  peer.partner().address = insert(blob);
  peer.partner().token = blob.head.token;
  peer.remote = std::move(blob);
  peer.remote_blob = remote.blob;
  peer.joined = true;
  peer.greeting_since = Clock::now();
  // One side asks at once, so that the first write does not wait for the handshake; both at a time would collide.
  if (policy_.greets || peer.token < peer.partner().token) ask(peer.partner());
  chores_ = true;
  std::vector<std::string> early;
  early.swap(peer.early);
  for (const std::string& held : early) received(peer, reinterpret_cast<const std::byte*>(held.data()), held.size());
}

void FabricDomain::admit(PeerNumber number, const Endpoint& other) {
  Peer* peer = find(number);
  if (peer == nullptr || peer->leaving) return;
  const EndpointBlob blob = accept(*peer, other);
  const std::uint64_t token = blob.head.token;
  if (peer->find(token) != nullptr) return;
  End end;
  end.token = token;
  end.address = insert(blob);
  peer->ends.push_back(std::move(end));
}

void FabricDomain::disconnect(PeerNumber number, bool lost) {
  Peer* peer = find(number);
  if (peer == nullptr) return sink_.fenced(number);
  if (!peer->leaving) peer->leaving_since = Clock::now();
  peer->leaving = true;
  peer->lost |= lost;
  resolve(*peer, &kPeerLost);
  // A shared endpoint cannot be closed for one peer: what is under way ends by itself or by the device's timeout. Where
  // closing waits for that, we wait for it, and serve the others meanwhile.
  if (lost && peer->own && (!policy_.close_waits || peer->in_flight == 0)) return fence(*peer);
  chores_ = true;
}

void FabricDomain::fence_quietly(Peer& peer) {
  peer.closing = true;
  if (peer.own) {
    // Over tcp this closes the listener and every connection; what was queued is flushed into the queue as errors, and
    // a peer that thaws later finds nobody at the port.
    if (policy_.forgets_connections) end_connections(peer);
    // The device forgets what is queued along with the queue pair, and its sender has been told that it is here; or the
    // provider would handle it too late.
    if (policy_.close_forgets || policy_.close_reposts) harvest_queued();
    peer.own->endpoint.reset();
    harvest_queued();
    for (Operation& operation : operations_) {
      if (operation.peer != &peer || operation.kind == Operation::Kind::idle) continue;
      const Purpose forgotten = operation;
      if (operation.left || policy_.close_forgets) {
        recycle(operation);
      } else {  // the provider forgot it; should its completion come yet, it must find the operation
        operation.kind = Operation::Kind::abandoned;
        operation.peer = nullptr;
      }
      if (forgotten.kind == Operation::Kind::piece) sink_.stopped(*forgotten.flow, forgotten.pieces, kPeerLost);
      if (forgotten.kind == Operation::Kind::message) sink_.sent(forgotten.message, kPeerLost);
    }
  }
  resolve(peer, &kPeerLost);
  for (End& end : peer.ends) {
    if (end.address != abi::addr_unspec) av_->ops->remove(av_.get(), &end.address, 1, 0);
  }
  tokens_.erase(peer.token);
  std::erase_if(unposted_, [&peer](const auto& waiting) { return waiting.first == &peer; });
  peers_.erase(peer.number);
}

// fi_close() does not know of the connections that the listener has accepted and that have not asked for anything yet.
// They keep a pointer to what it frees, and libfabric follows it once they ask, hang up or break: a crash. A peer that
// froze or died while it connected is enough, or a stranger who found the port. So they are ended first, while what
// they point to lives. libfabric 1.18 to 2.6; ofiwg/libfabric#12709.
void FabricDomain::end_connections(Peer& peer) {
  const std::vector<Socket> connections = hang_up(unpack_endpoint(peer.blob).address);
  const auto is_open = [](const Socket& connection) { return connection.open(); };
  // One that has not asked is closed as soon as a round comes to it. What may stay open is an endpoint's and cannot be
  // read to its end; fi_close() knows of those. Reading no completions drives libfabric, and tells nobody yet.
  for (int round = 0; round < kMostRounds && std::ranges::any_of(connections, is_open); ++round) {
    cq_->ops->read(cq_.get(), nullptr, 0);
  }
}

void FabricDomain::fence(Peer& peer) {
  const PeerNumber number = peer.number;
  fence_quietly(peer);
  settle_regions();  // nothing waits for its answers any more
  sink_.fenced(number);
}

}  // namespace aio::libfabric
