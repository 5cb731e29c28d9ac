// The data path: nothing here throws, but for memory running out.
#include <algorithm>
#include <array>
#include <cerrno>

#include "../core/counters.h"
#include "../core/refusal.h"
#include "domain.h"

namespace aio::libfabric {

namespace {

constexpr double kSlowestBytesPerSecond = 10e6;     // what is already under way may take this long before it is a stall
constexpr std::uint64_t kVouchedNbytes = 64 << 10;  // from here on an acknowledgement costs nothing beside the copy
// One operation of several pieces saves system calls on both sides; from here on they cost nothing beside the copy.
constexpr std::uint64_t kBundledNbytes = 64 << 10;
constexpr std::uint32_t kBundledPieces = 256;  // as many counts as an immediate holds
constexpr std::uint32_t kKeptSlots = 2;        // of the send slots: messages leave them to questions and answers

const Outcome kPeerGone{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

// ------------------------------------------------------------------------------------------------------ posting

// Takes one more piece in, or says that it must go by itself.
bool FabricDomain::join_bundle(Bundle& bundle, const Piece& piece, const LocalRegion* local,
                               const RemoteRegion* remote) const {
  const std::uint32_t counts = (bundle.immediate >> 24) + (piece.immediate >> 24) + 2;
  const bool both_count = piece.has_immediate() && (bundle.flags & kPieceImmediate) != 0;
  if (both_count && (counts > 256 || ((bundle.immediate ^ piece.immediate) & kCounterIdMask) != 0)) return false;
  if (piece.nbytes != 0) {
    if (bundle.pieces != 0 && bundle.nbytes + piece.nbytes > kBundledNbytes) return false;
    if (bundle.segments == most_segments_) return false;
    const std::size_t at = bundle.segments++;
    bundle.near[at] = {reinterpret_cast<void*>(piece.local_addr), piece.nbytes};
    bundle.descs[at] = local->registration->mem_desc;
    bundle.far[at] = {remote->key.base + piece.remote_offset, piece.nbytes, remote->key.key};
    bundle.nbytes += piece.nbytes;
  }
  if (both_count) {
    bundle.immediate = (counts - 1) << 24 | (piece.immediate & kCounterIdMask);
  } else if (piece.has_immediate()) {
    bundle.immediate = piece.immediate;
  }
  bundle.flags |= piece.flags;
  ++bundle.pieces;
  return true;
}

ssize_t FabricDomain::post_bundle(Peer& peer, Op op, Bundle& bundle, Operation& operation) {
  if (bundle.segments == 0) {
    const KeyBlob& anchor = peer.remote.head.anchor;
    bundle.near[0] = {anchor_memory_, 0};
    bundle.descs[0] = anchor_->mem_desc;
    bundle.far[0] = {anchor.base, 0, anchor.key};
    bundle.segments = 1;
  }
  const abi::RmaMessage message{bundle.near.data(), bundle.descs.data(), bundle.segments,     peer.partner().address,
                                bundle.far.data(),  bundle.segments,     operation.context(), bundle.immediate};
  abi::Ep* ep = peer.channel->endpoint.get();
  if (op == Op::read) return ep->rma->readmsg(ep, &message, abi::completion);
  operation.ordered = policy_.delivery;
  // Never FI_MORE: on EFA it holds the doorbell back for a post that may not come.
  std::uint64_t flags = abi::completion;
  if ((bundle.flags & kPieceImmediate) != 0) flags |= abi::remote_cq_data;
  if (operation.vouches || (bundle.flags & kPieceDelivered) != 0) flags |= abi::delivery_complete;
  return ep->rma->writemsg(ep, &message, flags);
}

// Under Policy::payload_ahead: leaves the bundle with its immediate alone. What becomes of the payload shows in what
// becomes of the immediate, since both are lost with the same connection.
ssize_t FabricDomain::post_ahead(Peer& peer, Bundle& bundle) {
  if (!policy_.payload_ahead || bundle.segments == 0 || (bundle.flags & kPieceImmediate) == 0) return 0;
  const std::uint32_t flags = std::exchange(bundle.flags, 0);
  Operation& operation = acquire(Operation::Kind::control, &peer);
  const ssize_t result = post_bundle(peer, Op::write, bundle, operation);
  bundle.flags = flags;
  if (result < 0) {
    recycle(operation);
    return result;
  }
  enlist(operation, bundle.nbytes);
  bundle.segments = 0;
  return 0;
}

// The provider has accepted it.
void FabricDomain::enlist(Operation& operation, std::uint64_t nbytes) {
  Peer& peer = *operation.peer;
  operation.nbytes = nbytes;
  ++peer.in_flight;
  peer.nbytes_in_flight += nbytes;
  peer.stalled.reset();
  if (operation.ordered) peer.unconfirmed.push_back(&operation);
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
  if (policy_.greets && !peer->greeted()) {
    // This has a clock of its own: frames that go out and fail, where no packet comes through, would set the other
    // back.
    const std::chrono::duration<double> waited = Clock::now() - peer->greeting_since;
    if (waited < post_deadline_) return Posted::full;
    return refuse({Status::provider, ETIMEDOUT,
                   "the peer's NIC has not answered for " + std::to_string(static_cast<int>(waited.count())) +
                       " s: no packet comes through, a security group or a firewall may be between"});
  }
  if (peer->in_flight >= depth_) return blocked(*peer, flow);
  const std::uint32_t end = flow.next + std::min(budget, run.count - flow.next);
  const std::uint32_t most_pieces = most_segments_ == 1 ? 1 : kBundledPieces;
  while (flow.next < end && peer->in_flight < depth_) {
    Bundle bundle;
    const Outcome* refused = nullptr;
    // The first one always fits.
    for (std::uint32_t at = flow.next; at < end && bundle.pieces < most_pieces; ++at) {
      refused = refusal(run, flow.pieces[at], near, far, attributes_.max_piece_nbytes);
      if (refused != nullptr || !join_bundle(bundle, flow.pieces[at], near, far)) break;
    }
    if (bundle.pieces == 0) {
      vouch_for_tail(*peer);
      return refuse(*refused);
    }
    Operation& operation = acquire(Operation::Kind::piece, peer);
    const bool last = flow.next + bundle.pieces == end || peer->in_flight + 1 == depth_;
    operation.vouches = policy_.delivery && (last || (bundle.segments == 1 && bundle.nbytes >= kVouchedNbytes));
    ssize_t result = post_ahead(*peer, bundle);
    if (result == 0) result = post_bundle(*peer, run.op, bundle, operation);
    if (result < 0) {
      recycle(operation);
      vouch_for_tail(*peer);
      if (result == -EAGAIN) return blocked(*peer, flow);
      const int code = static_cast<int>(-result);
      return refuse({Status::provider, code, library_.strerror(code)});
    }
    operation.flow = &flow;
    operation.pieces = bundle.pieces;
    operation.serial = bundle.nbytes == 0 ? 0 : far->key.serial;
    enlist(operation, bundle.nbytes);
    flow.next += bundle.pieces;
    flow.in_flight += bundle.pieces;
  }
  return flow.next == end ? Posted::more : Posted::full;
}

// The batch ended early, so the writes at its end have nobody after them to vouch for them.
void FabricDomain::vouch_for_tail(Peer& peer) {
  if (peer.unconfirmed.empty() || peer.unconfirmed.back()->vouches) return;
  Operation& operation = acquire(Operation::Kind::control, &peer);
  operation.vouches = true;
  Bundle bundle;
  const ssize_t result = post_bundle(peer, Op::write, bundle, operation);
  if (result == 0) return enlist(operation, 0);
  recycle(operation);
  // Their connection is gone, and a later acknowledgement would come over another one, which proves nothing for them.
  suspend_unconfirmed(peer, ECANCELED);
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
  const Outcome outcome{
      Status::provider, EAGAIN,
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
    sink_.sent(message, {Status::provider, EMSGSIZE,
                         "the message exceeds " + std::to_string(attributes_.max_message_nbytes) + " bytes"});
    return Posted::more;
  }
  if (!peer->suspended.empty() || !peer->outbox.empty() || peer->channel->free_slots.size() <= kKeptSlots)
    return Posted::full;
  std::string frame;
  frame.reserve(sizeof(FrameHead) + payload.size());
  append_record(frame, FrameHead{peer->remote.head.token, FrameKind::message, 0, message, peer->token});
  frame += payload;
  const ssize_t result = post_frame(*peer, Operation::Kind::message, message, frame, peer->partner().address);
  if (result == -EAGAIN) return Posted::full;
  if (result < 0) sink_.sent(message, {Status::provider, -result, library_.strerror(static_cast<int>(-result))});
  return Posted::more;
}

ssize_t FabricDomain::post_frame(Peer& peer, Operation::Kind kind, TransferId message, std::string_view frame,
                                 std::uint64_t to) {
  Channel& channel = *peer.channel;
  if (channel.free_slots.empty()) return -EAGAIN;
  Operation& operation = acquire(kind, &peer);
  operation.message = message;
  operation.slot = channel.free_slots.back();
  std::memcpy(channel.at(operation.slot), frame.data(), frame.size());
  abi::Ep* ep = channel.endpoint.get();
  const ssize_t result =
      ep->msg->send(ep, channel.at(operation.slot), frame.size(), channel.desc(), to, operation.context());
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
  const ssize_t result =
      ep->msg->recv(ep, channel.at(slot), channel.slot_nbytes, channel.desc(), abi::addr_unspec, operation.context());
  if (result == 0) return;
  recycle(operation);
  if (result == -EAGAIN) unposted_.emplace_back(peer, slot);
}

Operation& FabricDomain::acquire(Purpose::Kind kind, Peer* peer) {
  if (idle_.empty()) idle_.push_back(&operations_.emplace_back());
  Operation& operation = *idle_.back();
  idle_.pop_back();
  static_cast<Purpose&>(operation) = {.kind = kind, .peer = peer};
  return operation;
}

void FabricDomain::recycle(Operation& operation) noexcept {
  operation.kind = Operation::Kind::idle;
  operation.peer = nullptr;
  idle_.push_back(&operation);
}

}  // namespace aio::libfabric
