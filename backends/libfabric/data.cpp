// The data path: nothing here throws, but for memory running out.
#include <algorithm>
#include <array>
#include <cerrno>

#include "fabric_domain.h"

namespace aio::libfabric {

namespace {

constexpr double kSlowestBytesPerSecond = 10e6;  // what is already under way may take this long before it is a stall
constexpr std::uint32_t kKeptSlots = 2;          // of the send slots: messages leave them to questions and answers

const Outcome kPeerGone{Status::peer_lost, 0, "the connection is closed"};

// The peer's side said that the key names nothing. EFA's device says it with a status of its own (efa_errno.h).
bool is_stale(const abi::CqErrorEntry& error, bool efa) noexcept {
  constexpr int efa_remote_bad_address = 7;
  return error.err == EACCES || error.err == EKEYREJECTED || error.err == ENOKEY || error.err == abi::err_nokey ||
         (efa && error.prov_errno == efa_remote_bad_address);
}

bool is_broken(int code) noexcept {
  return code == ECANCELED || code == ECONNRESET || code == EPIPE || code == ENOTCONN || code == ECONNABORTED ||
         code == ESHUTDOWN || code == EIO;
}

}  // namespace

// ------------------------------------------------------------------------------------------------------ posting

std::optional<Outcome> FabricDomain::refusal(const Run& run, const Piece& piece, const LocalRegion* local,
                                             const RemoteRegion* remote) const {
  const auto invalid = [](const char* why) { return Outcome{Status::provider, EINVAL, why}; };
  if (piece.nbytes == 0) return std::nullopt;  // it names the anchor
  if (remote == nullptr || remote->peer != run.peer) return Outcome{Status::stale_region, 0, "the remote region is not registered"};
  if (remote->dead) return Outcome{Status::stale_region, 0, "the peer has deregistered the region"};
  if (local == nullptr || !local->registration) return invalid("the local region is not registered");
  if (piece.remote_offset > remote->nbytes || piece.nbytes > remote->nbytes - piece.remote_offset) {
    return invalid("the piece exceeds the remote region");
  }
  const std::uint64_t offset = piece.local_addr - local->addr;
  if (piece.local_addr < local->addr || offset > local->nbytes || piece.nbytes > local->nbytes - offset) {
    return invalid("the piece exceeds the local region");
  }
  return std::nullopt;
}

ssize_t FabricDomain::post_piece(Peer& peer, const Run& run, const Piece& piece, const LocalRegion* local,
                                 const RemoteRegion* remote, Operation& operation) {
  const bool bare = piece.nbytes == 0;
  const iovec where{bare ? anchor_memory_ : reinterpret_cast<void*>(piece.local_addr), piece.nbytes};
  const KeyBlob& key = bare ? peer.remote.head.anchor : remote->key;
  const abi::RmaIov target{key.base + (bare ? 0 : piece.remote_offset), piece.nbytes, key.key};
  void* desc = bare ? anchor_->mem_desc : local->registration->mem_desc;
  const abi::RmaMessage message{&where, &desc, 1, peer.address, &target, 1, &operation.context, piece.immediate};
  abi::Ep* ep = peer.channel->endpoint.get();
  if (run.op == Op::read) return ep->rma->readmsg(ep, &message, abi::completion);
  // Never FI_MORE: on EFA it holds the doorbell back for a post that may not come.
  std::uint64_t flags = abi::completion;
  if (piece.has_immediate()) flags |= abi::remote_cq_data;
  if (policy_.delivery) flags |= abi::delivery_complete;
  return ep->rma->writemsg(ep, &message, flags);
}

Posted FabricDomain::post(Flow& flow, std::uint32_t budget) {
  const Run& run = flow.run;
  Peer* peer = find(run.peer);
  const auto remote = remote_regions_.find(run.remote_region);
  const auto local = local_regions_.find(run.local_region);
  const RemoteRegion* far = remote == remote_regions_.end() ? nullptr : &remote->second;
  const LocalRegion* near = local == local_regions_.end() ? nullptr : &local->second;
  const auto refuse = [&](const Outcome& outcome) {
    ++flow.next;
    ++flow.in_flight;
    sink_.stopped(flow, 1, outcome);
    return Posted::more;
  };
  if (peer == nullptr || !peer->joined || peer->leaving) return refuse(kPeerGone);
  // Until it is known why the connection broke, another post could break it again.
  if (!peer->suspended.empty()) return Posted::full;
  for (; budget > 0 && !flow.exhausted(); --budget) {
    const Piece& piece = flow.pieces[flow.next];
    if (const auto refused = refusal(run, piece, near, far)) return refuse(*refused);
    if (peer->in_flight >= depth_) return blocked(*peer, flow);
    Operation& operation = acquire(Operation::Kind::piece, peer);
    const ssize_t result = post_piece(*peer, run, piece, near, far, operation);
    if (result < 0) {
      recycle(operation);
      if (result == -EAGAIN) return blocked(*peer, flow);
      const int code = static_cast<int>(-result);
      return refuse({Status::provider, code, library_.strerror(code)});
    }
    operation.flow = &flow;
    operation.serial = piece.nbytes == 0 ? 0 : far->key.serial;
    operation.nbytes = piece.nbytes;
    ++peer->in_flight;
    peer->nbytes_in_flight += piece.nbytes;
    peer->stalled.reset();
    ++flow.next;
    ++flow.in_flight;
  }
  return Posted::more;
}

// No room for this peer now. It may stay so for a while, but not for ever and not in silence.
Posted FabricDomain::blocked(Peer& peer, Flow& flow) {
  const auto now = Clock::now();
  if (!peer.stalled) peer.stalled = now;
  const std::chrono::duration<double> waited = now - *peer.stalled;
  const std::chrono::duration<double> underway(static_cast<double>(peer.nbytes_in_flight) / kSlowestBytesPerSecond);
  if (waited < post_deadline_ + underway) return Posted::full;
  peer.stalled = now;
  const std::string tail = " for " + std::to_string(static_cast<int>(waited.count())) + " s";
  const Outcome outcome{Status::provider, EAGAIN,
                        peer.in_flight != 0
                            ? std::to_string(peer.in_flight) + " operations are under way and none ended" + tail +
                                  ": the peer is frozen, or no packet reaches it"
                            : "nothing could be posted" + tail +
                                  ": no connection to the peer's endpoint comes about; it is gone, or a firewall is between"};
  ++flow.next;
  ++flow.in_flight;
  sink_.stopped(flow, 1, outcome);
  return Posted::more;
}

Posted FabricDomain::send(PeerNumber number, TransferId message, const std::string& payload) {
  Peer* peer = find(number);
  if (peer == nullptr || !peer->joined || peer->leaving) {
    sink_.sent(message, kPeerGone);
    return Posted::more;
  }
  if (payload.size() > attributes_.max_message_nbytes) {
    sink_.sent(message, {Status::provider, EMSGSIZE, "the message exceeds " + std::to_string(attributes_.max_message_nbytes) + " bytes"});
    return Posted::more;
  }
  if (!peer->suspended.empty() || !peer->outbox.empty() || peer->channel->free_slots.size() <= kKeptSlots) return Posted::full;
  std::string frame;
  frame.reserve(sizeof(FrameHead) + payload.size());
  append_record(frame, FrameHead{peer->remote.head.token, FrameKind::message, 0, message});
  frame += payload;
  const ssize_t result = post_frame(*peer, Operation::Kind::message, message, frame);
  if (result == -EAGAIN) return Posted::full;
  if (result < 0) sink_.sent(message, {Status::provider, -result, library_.strerror(static_cast<int>(-result))});
  return Posted::more;
}

ssize_t FabricDomain::post_frame(Peer& peer, Operation::Kind kind, TransferId message, std::string_view frame) {
  Channel& channel = *peer.channel;
  if (channel.free_slots.empty()) return -EAGAIN;
  Operation& operation = acquire(kind, &peer);
  operation.message = message;
  operation.slot = channel.free_slots.back();
  std::memcpy(channel.at(operation.slot), frame.data(), frame.size());
  abi::Ep* ep = channel.endpoint.get();
  const ssize_t result = ep->msg->send(ep, channel.at(operation.slot), frame.size(), channel.desc(), peer.address, &operation.context);
  if (result < 0) {
    recycle(operation);
    return result;
  }
  channel.free_slots.pop_back();
  ++peer.in_flight;
  return 0;
}

void FabricDomain::post_receive(Channel& channel, Peer* peer, std::uint32_t slot) {
  Operation& operation = acquire(Operation::Kind::receive, peer);
  operation.slot = slot;
  abi::Ep* ep = channel.endpoint.get();
  const ssize_t result = ep->msg->recv(ep, channel.at(slot), kSlotNbytes, channel.desc(), abi::addr_unspec, &operation.context);
  if (result == 0) return;
  recycle(operation);
  if (result == -EAGAIN) unposted_.emplace_back(peer, slot);
}

// --------------------------------------------------------------------------------------------------- completions

bool FabricDomain::progress() {
  bool moved = harvest();
  std::vector<std::pair<Peer*, std::uint32_t>> unposted;
  unposted.swap(unposted_);
  for (const auto& [peer, slot] : unposted) post_receive(peer == nullptr ? *shared_ : *peer->channel, peer, slot);
  if (!chores_) return moved;
  chores_ = false;
  const auto now = Clock::now();
  std::vector<PeerNumber> numbers;  // tending may end a peer
  numbers.reserve(peers_.size());
  for (const auto& [number, peer] : peers_) numbers.push_back(number);
  for (const PeerNumber number : numbers) {
    if (Peer* peer = find(number)) moved |= tend(*peer, now);
  }
  return moved;
}

bool FabricDomain::harvest() {
  std::array<abi::CqEntry, 64> entries;
  bool moved = false;
  // Bounded, so that arrivals alone never keep the worker from posting.
  for (int batch = 0; batch < 16; ++batch) {
    const ssize_t count = cq_->ops->read(cq_.get(), entries.data(), entries.size());
    if (count == -abi::err_avail) {
      abi::CqErrorEntry error{};
      if (cq_->ops->readerr(cq_.get(), &error, 0) > 0) fail(error);
    } else if (count <= 0) {
      break;
    } else {
      for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) complete(entries[i]);
    }
    moved = true;
  }
  if (arrived_) last_arrival_ = Clock::now();
  arrived_ = false;
  return moved;
}

void FabricDomain::complete(const abi::CqEntry& entry) {
  if ((entry.flags & abi::remote_cq_data) != 0 && (entry.flags & abi::recv) == 0) {
    arrived_ = true;
    sink_.counted(static_cast<std::uint32_t>(entry.data));
    return;
  }
  if (entry.op_context == nullptr) return;
  Operation& operation = *static_cast<Operation*>(entry.op_context);
  if (operation.kind != Operation::Kind::receive) return finish(operation, {});
  Peer* owner = operation.peer;
  Channel& channel = owner == nullptr ? *shared_ : *owner->channel;
  const std::uint32_t slot = operation.slot;
  recycle(operation);
  arrived_ = true;
  const std::byte* bytes = channel.at(slot);
  if (entry.nbytes >= sizeof(FrameHead) && entry.nbytes <= kSlotNbytes) {
    std::uint64_t token = 0;
    std::memcpy(&token, bytes, sizeof token);
    // Whoever does not quote a token that we gave out is not heard, nor is one who quotes another's.
    const auto found = tokens_.find(token);
    if (found != tokens_.end() && (owner == nullptr || owner == found->second)) received(*found->second, bytes, entry.nbytes);
  }
  post_receive(channel, owner, slot);
}

// An error names its operation by op_context alone: the other fields are not set by every provider.
void FabricDomain::fail(const abi::CqErrorEntry& error) {
  if (error.op_context == nullptr) return;
  Operation& operation = *static_cast<Operation*>(error.op_context);
  Peer* peer = operation.peer;
  if (operation.kind == Operation::Kind::receive) {
    Channel& channel = peer == nullptr ? *shared_ : *peer->channel;
    const std::uint32_t slot = operation.slot;
    recycle(operation);
    if (peer == nullptr || !peer->closing) post_receive(channel, peer, slot);  // truncated: longer than any of ours
    return;
  }
  if (operation.kind == Operation::Kind::abandoned || operation.kind == Operation::Kind::control) return finish(operation, {});
  if (peer->closing || peer->leaving) return finish(operation, kPeerGone);
  if (is_stale(error, policy_.close_revokes) || (operation.serial != 0 && peer->dead.contains(operation.serial))) {
    return finish(operation, {Status::stale_region, error.err, library_.strerror(error.err)});
  }
  if (is_broken(error.err) && peer->own) {
    if (peer->suspended.empty()) peer->suspended_at = Clock::now();
    peer->suspended.push_back({operation.flow, operation.message, operation.serial, error.err});
    peer->verdict_number = peer->asked + 1;
    ask(*peer);
    operation.kind = Operation::Kind::control;  // its end is told later
    return finish(operation, {});
  }
  std::array<char, 128> text{};
  std::string reason = library_.strerror(error.err);
  const char* words = cq_->ops->strerror(cq_.get(), error.prov_errno, error.err_data, text.data(), text.size());
  if (words != nullptr && error.prov_errno != 0) reason += std::string("; ") + words;
  finish(operation, {Status::provider, error.err, std::move(reason)});
}

void FabricDomain::finish(Operation& operation, const Outcome& outcome) {
  const Operation ended = operation;
  recycle(operation);
  Peer* peer = ended.peer;
  if (peer == nullptr) return;  // abandoned
  --peer->in_flight;
  peer->nbytes_in_flight -= ended.nbytes;
  peer->stalled.reset();
  if (ended.kind == Operation::Kind::piece) {
    sink_.stopped(*ended.flow, 1, outcome);
    return;
  }
  if (ended.slot_held()) peer->channel->free_slots.push_back(ended.slot);
  if (ended.kind == Operation::Kind::message) sink_.sent(ended.message, outcome);
}

Operation& FabricDomain::acquire(Operation::Kind kind, Peer* peer) {
  if (idle_.empty()) idle_.push_back(&operations_.emplace_back());
  Operation& operation = *idle_.back();
  idle_.pop_back();
  operation = Operation{};
  operation.kind = kind;
  operation.peer = peer;
  return operation;
}

void FabricDomain::recycle(Operation& operation) noexcept {
  operation.kind = Operation::Kind::idle;
  operation.peer = nullptr;
  idle_.push_back(&operation);
}

}  // namespace aio::libfabric
