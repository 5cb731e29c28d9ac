// Connecting, the questions peers ask each other below the contract, and fencing.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <random>

#include "fabric_domain.h"
#include "sockets.h"

namespace aio::libfabric {

namespace {

constexpr auto kAskAgain = std::chrono::milliseconds(100);  // doubled each time, up to 32 times
// After a goodbye nothing should come: the peer waited for its acknowledgements. This is for what needs none.
constexpr auto kQuiet = std::chrono::milliseconds(50);
constexpr auto kQuietAtMost = std::chrono::seconds(1);
constexpr std::size_t kMostSerials = (kLeastSlotNbytes - sizeof(FrameHead)) / sizeof(std::uint64_t) / 2;
constexpr std::size_t kMostDead = 16384;
constexpr std::size_t kMostWaiting = 1024;  // frames kept for a peer that cannot take or name them yet
constexpr int kMostRounds = 1000;           // each serves 128 of the sockets that are ready, in turn

const Outcome kPeerLost{Status::peer_lost, 0, "the connection is closed"};

// libfabric's address vectors trust what they are given: a socket address must be one before it gets there.
bool plausible(std::uint32_t format, std::string_view address, std::size_t own_nbytes) {
  if (address.size() != own_nbytes) return false;
  const auto family = address.size() >= 2 ? read_record<std::uint16_t>(address) : std::uint16_t{0};
  if (format == abi::format_sockaddr_in) return family == AF_INET;
  if (format == abi::format_sockaddr_in6) return family == AF_INET6;
  if (format == abi::format_sockaddr) return family == AF_INET || family == AF_INET6;
  return true;
}

std::string frame(std::uint64_t token, FrameKind kind, std::uint32_t revoked, std::uint64_t number,
                  std::uint64_t from) {
  std::string bytes;
  append_record(bytes, FrameHead{token, kind, revoked, number, from});
  return bytes;
}

}  // namespace

Peer* FabricDomain::find(PeerNumber number) noexcept {
  const auto found = peers_.find(number);
  return found == peers_.end() ? nullptr : found->second.get();
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
  peer.address = insert(blob);
  peer.remote = std::move(blob);
  peer.remote_blob = remote.blob;
  peer.joined = true;
  // One side asks at once, so that the first write does not wait for the handshake; both at a time would collide.
  if (policy_.greets || peer.token < peer.remote.head.token) ask(peer);
  chores_ = true;
  std::vector<std::string> early;
  early.swap(peer.early);
  for (const std::string& held : early) received(peer, reinterpret_cast<const std::byte*>(held.data()), held.size());
}

// Throws unless it is an endpoint that ours can reach.
EndpointBlob FabricDomain::accept(const Peer& peer, const Endpoint& remote) const {
  EndpointBlob blob = unpack_endpoint(remote.blob);
  const EndpointBlob own = unpack_endpoint(peer.blob);
  if (blob.provider != own.provider) {
    throw Failure(Failure::Kind::usage, "connect", "the peer's provider is not " + own.provider);
  }
  if (blob.head.addr_format != own.head.addr_format ||
      !plausible(blob.head.addr_format, blob.address, own.address.size())) {
    throw Failure(Failure::Kind::usage, "connect",
                  "the peer's address is not of the format that " + own.provider + " uses here");
  }
  return blob;
}

std::uint64_t FabricDomain::insert(const EndpointBlob& blob) {
  std::uint64_t address = abi::addr_unspec;
  const int inserted = av_->ops->insert(av_.get(), blob.address.data(), 1, &address, 0, nullptr);
  if (inserted < 0) check("fi_av_insert", inserted);
  if (inserted != 1) throw Failure(Failure::Kind::provider, "fi_av_insert", "the address is refused", EADDRNOTAVAIL);
  return address;
}

void FabricDomain::admit(PeerNumber number, const Endpoint& other) {
  Peer* peer = find(number);
  if (peer == nullptr || peer->leaving) return;
  const EndpointBlob blob = accept(*peer, other);
  const std::uint64_t token = blob.head.token;
  if (std::ranges::any_of(peer->others, [token](const Peer::OtherEnd& known) { return known.token == token; })) return;
  peer->others.push_back({token, insert(blob)});
}

void FabricDomain::disconnect(PeerNumber number, bool lost) {
  Peer* peer = find(number);
  if (peer == nullptr) return sink_.fenced(number);
  if (!peer->leaving) peer->leaving_since = Clock::now();
  peer->leaving = true;
  resolve(*peer, &kPeerLost);
  // A shared endpoint cannot be closed for one peer: what is under way ends by itself or by the provider's timeout.
  if (lost && peer->own) return fence(*peer);
  chores_ = true;
}

void FabricDomain::fence_quietly(Peer& peer) {
  peer.closing = true;
  if (peer.own) {
    // Over tcp this closes the listener and every connection; what was queued is flushed into the queue as errors, and
    // a peer that thaws later finds nobody at the port.
    if (policy_.forgets_connections) end_connections(peer);
    peer.own->endpoint.reset();
    // All that was queued when the endpoint closed; each round reads some, and others may add to it meanwhile.
    for (std::size_t round = 0; harvest() && round <= cq_entries_ / kHarvested; ++round) {
    }
    for (Operation& operation : operations_) {
      if (operation.peer != &peer || operation.kind == Operation::Kind::idle) continue;
      const Operation forgotten = operation;
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
  if (peer.joined) av_->ops->remove(av_.get(), &peer.address, 1, 0);
  for (Peer::OtherEnd& other : peer.others) av_->ops->remove(av_.get(), &other.address, 1, 0);
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

// ------------------------------------------------------------------------------------------- questions and answers

void FabricDomain::ask(Peer& peer) noexcept {
  peer.wanted = peer.asked + 1;
  chores_ = true;
}

void FabricDomain::write_question(Peer& peer) {
  peer.told.clear();
  for (const std::uint64_t serial : peer.revoking) {
    if (peer.told.size() < kMostSerials) peer.told.insert(serial);
  }
  peer.question = frame(peer.remote.head.token, FrameKind::question, static_cast<std::uint32_t>(peer.told.size()),
                        ++peer.asked, peer.token);
  for (const std::uint64_t serial : peer.told) append_record(peer.question, serial);
  std::set<std::uint64_t> doubtful;
  for (const Suspended& suspended : peer.suspended) {
    if (suspended.serial != 0 && doubtful.size() < kMostSerials) doubtful.insert(suspended.serial);
  }
  for (const std::uint64_t serial : doubtful) append_record(peer.question, serial);
}

// What one peer needs of time and room. May end it. Returns whether anything moved.
bool FabricDomain::tend(Peer& peer, Clock::time_point now) {
  bool moved = false;
  if (peer.joined) {
    if (peer.wanted > peer.answered) {
      const bool fresh = peer.asked == peer.answered;
      if (fresh) write_question(peer);
      // Asked again, since either way may have been lost with a connection.
      if (fresh || (now - peer.asked_at > kAskAgain * (1 << std::min(peer.repeats, 5)) && peer.outbox.empty())) {
        peer.outbox.emplace_back(peer.address, peer.question);
        peer.asked_at = now;
        peer.repeats = fresh ? 0 : peer.repeats + 1;
      }
    }
    moved = flush_outbox(peer);
  }
  if (!peer.suspended.empty() && now - peer.suspended_at > verdict_) {
    const Outcome lost{Status::peer_lost, peer.suspended.front().code,
                       "its connection broke, and it does not answer a new one"};
    resolve(peer, &lost);
    sink_.peer_failed(peer.number, lost);
    moved = true;
  }
  if (peer.leaving) {
    const bool quiet =
        now - std::max(last_arrival_, peer.leaving_since) > kQuiet || now - peer.leaving_since > kQuietAtMost;
    if (quiet && (peer.own || peer.in_flight == 0)) {
      fence(peer);
      return true;
    }
  }
  chores_ |=
      peer.leaving || !peer.suspended.empty() || (peer.joined && (peer.wanted > peer.answered || !peer.outbox.empty()));
  return moved;
}

bool FabricDomain::flush_outbox(Peer& peer) {
  bool moved = false;
  while (!peer.outbox.empty() && !peer.leaving) {
    const ssize_t result =
        post_frame(peer, Operation::Kind::control, 0, peer.outbox.front().second, peer.outbox.front().first);
    if (result == -EAGAIN) break;
    peer.outbox.pop_front();  // a failure is made good by the asker, who asks again
    moved = true;
  }
  return moved;
}

void FabricDomain::received(Peer& peer, const std::byte* bytes, std::size_t nbytes) {
  std::string_view rest(reinterpret_cast<const char*>(bytes), nbytes);
  if (!peer.joined) {
    if (peer.early.size() < kMostWaiting) peer.early.emplace_back(rest);
    return;
  }
  const auto head = read_record<FrameHead>(rest);
  rest.remove_prefix(sizeof head);
  if (head.from != peer.remote.head.token) {
    // What it revokes are keys that we never hold: those of another NIC of its.
    const std::size_t revoked = std::min(std::size_t{head.revoked}, rest.size() / 8);
    for (const Peer::OtherEnd& other : peer.others) {
      if (other.token == head.from && head.kind == FrameKind::question)
        answer(peer, head, rest.substr(8 * revoked), other);
    }
    return;
  }
  switch (head.kind) {
    case FrameKind::message:
      if (!peer.leaving || peer.own) sink_.message(peer.number, std::string(rest));
      return;
    case FrameKind::question: {
      const std::size_t revoked = std::min(std::size_t{head.revoked}, rest.size() / 8);
      forget(peer, read_serials(rest.substr(0, 8 * revoked)));
      return answer(peer, head, rest.substr(8 * revoked), {head.from, peer.address});
    }
    case FrameKind::answer:
      answered(peer, head.number, read_serials(rest));
      return;
  }
}

// Says which of the regions that the peer asks about are gone.
void FabricDomain::answer(Peer& peer, const FrameHead& head, std::string_view asked, const Peer::OtherEnd& to) {
  std::set<std::uint64_t> doubtful = read_serials(asked);
  for (const auto& [number, region] : local_regions_) {
    if (!closing_regions_.contains(number)) doubtful.erase(region.serial);
  }
  std::string reply = frame(to.token, FrameKind::answer, 0, head.number, peer.token);
  for (const std::uint64_t serial : doubtful) append_record(reply, serial);
  if (peer.outbox.size() < kMostWaiting) peer.outbox.emplace_back(to.address, std::move(reply));
  chores_ = true;
}

void FabricDomain::forget(Peer& peer, const std::set<std::uint64_t>& serials) {
  if (serials.empty()) return;
  peer.dead.insert(serials.begin(), serials.end());
  while (peer.dead.size() > kMostDead) peer.dead.erase(peer.dead.begin());
  for (auto& [number, region] : remote_regions_) {
    if (region.peer == peer.number && serials.contains(region.key.serial)) region.dead = true;
  }
}

void FabricDomain::answered(Peer& peer, std::uint64_t number, const std::set<std::uint64_t>& dead) {
  if (number != peer.asked || number == peer.answered) return;  // of a question that was asked twice
  peer.answered = number;
  for (const std::uint64_t serial : peer.told) peer.revoking.erase(serial);
  peer.told.clear();
  if (!peer.revoking.empty()) ask(peer);
  forget(peer, dead);
  if (number >= peer.verdict_number) resolve(peer, nullptr);
  settle_regions();
}

// Ends what was suspended: by `verdict`, or by what the peer has told.
void FabricDomain::resolve(Peer& peer, const Outcome* verdict) {
  std::vector<Suspended> suspended;
  suspended.swap(peer.suspended);
  for (const Suspended& one : suspended) {
    Outcome outcome;
    if (verdict != nullptr) {
      outcome = *verdict;
    } else if (one.serial != 0 && peer.dead.contains(one.serial)) {
      outcome = {Status::stale_region, one.code, "the peer has deregistered the region"};
    } else {
      outcome = {Status::provider, one.code,
                 std::string(library_.strerror(one.code)) +
                     ": the connection broke and came back; the peer had refused an access, perhaps another's"};
    }
    if (one.flow != nullptr)
      sink_.stopped(*one.flow, one.pieces, outcome);
    else
      sink_.sent(one.message, outcome);
  }
}

}  // namespace aio::libfabric
