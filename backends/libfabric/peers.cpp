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
constexpr auto kUnderwayAtMost = std::chrono::seconds(30);  // beyond any timeout of a device
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

bool FabricDomain::is_reachable(PeerNumber number) const noexcept {
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

// ------------------------------------------------------------------------------------------- questions and answers

void FabricDomain::ask(End& end) noexcept {
  end.wanted = end.asked + 1;
  chores_ = true;
}

void FabricDomain::write_question(Peer& peer, End& end) {
  end.told.clear();
  for (const std::uint64_t serial : end.revoking) {
    if (end.told.size() < kMostSerials) end.told.insert(serial);
  }
  end.question =
      frame(end.token, FrameKind::question, static_cast<std::uint32_t>(end.told.size()), ++end.asked, peer.token);
  for (const std::uint64_t serial : end.told) append_record(end.question, serial);
  if (&end != &peer.partner()) return;  // we hold no keys of its
  std::set<std::uint64_t> doubtful;
  for (const Suspended& suspended : peer.suspended) {
    if (suspended.serial != 0 && doubtful.size() < kMostSerials) doubtful.insert(suspended.serial);
  }
  for (const std::uint64_t serial : doubtful) append_record(end.question, serial);
}

void FabricDomain::put_question(Peer& peer, End& end, Clock::time_point now) {
  if (!end.owes()) return;
  const bool fresh = end.asked == end.answered;
  if (fresh) write_question(peer, end);
  // Asked again, since either way may have been lost with a connection.
  if (!fresh && (now - end.asked_at <= kAskAgain * (1 << std::min(end.repeats, 5)) || !peer.outbox.empty())) return;
  peer.outbox.emplace_back(end.address, end.question);
  end.asked_at = now;
  end.repeats = fresh ? 0 : end.repeats + 1;
}

// What one peer needs of time and room. May end it. Returns whether anything moved.
bool FabricDomain::tend(Peer& peer, Clock::time_point now) {
  bool moved = false;
  if (peer.joined) {
    for (End& end : peer.ends) put_question(peer, end, now);
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
    const bool still = peer.in_flight == 0;
    const bool waits = !peer.own || policy_.close_waits;
    if ((still && peer.lost && peer.own) || (quiet && (still || !waits)) ||
        (peer.own && now - peer.leaving_since > kUnderwayAtMost)) {
      fence(peer);
      return true;
    }
  }
  chores_ |= peer.leaving || !peer.suspended.empty() ||
             (peer.joined && (!peer.outbox.empty() || std::ranges::any_of(peer.ends, &End::owes)));
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
  End* end = peer.find(head.from);
  if (end == nullptr) return;
  const bool paired = end == &peer.partner();  // the others' keys are none that we hold
  switch (head.kind) {
    case FrameKind::message:
      if (!peer.leaving || peer.own) sink_.message(peer.number, std::string(rest));
      return;
    case FrameKind::question: {
      const std::size_t revoked = std::min(std::size_t{head.revoked}, rest.size() / 8);
      if (paired) forget(peer, read_serials(rest.substr(0, 8 * revoked)));
      return answer(peer, *end, head.number, rest.substr(8 * revoked));
    }
    case FrameKind::answer:
      return answered(peer, *end, head.number, paired ? read_serials(rest) : std::set<std::uint64_t>{});
  }
}

// Says which of the regions that the peer asks about are gone.
void FabricDomain::answer(Peer& peer, const End& end, std::uint64_t number, std::string_view asked) {
  std::set<std::uint64_t> doubtful = read_serials(asked);
  for (const auto& [region_number, region] : local_regions_) {
    if (!closing_regions_.contains(region_number)) doubtful.erase(region.serial);
  }
  std::string reply = frame(end.token, FrameKind::answer, 0, number, peer.token);
  for (const std::uint64_t serial : doubtful) append_record(reply, serial);
  if (peer.outbox.size() < kMostWaiting) peer.outbox.emplace_back(end.address, std::move(reply));
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

void FabricDomain::answered(Peer& peer, End& end, std::uint64_t number, const std::set<std::uint64_t>& dead) {
  if (number != end.asked || number == end.answered) return;  // of a question that was asked twice
  end.answered = number;
  for (const std::uint64_t serial : end.told) end.revoking.erase(serial);
  end.told.clear();
  if (!end.revoking.empty()) ask(end);
  forget(peer, dead);
  if (&end == &peer.partner() && number >= peer.verdict_number) resolve(peer, nullptr);
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
