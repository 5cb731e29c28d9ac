// Posting of operations. Nothing here throws, except for std::bad_alloc.
#include <algorithm>
#include <array>
#include <cerrno>

#include "../core/counters.h"
#include "../core/validation.h"
#include "domain.h"

namespace aio::libfabric {

namespace {

constexpr double kMinBytesPerSecond = 10e6;  // time that the payload in flight is granted before it counts as stalled
constexpr std::uint64_t kAckNbytes = 64 << 10;  // from this size on an acknowledgement is cheap beside the copy
// Bundling saves system calls on both sides; from this size on they are cheap beside the copy.
constexpr std::uint64_t kMaxBundleNbytes = 64 << 10;
constexpr std::uint32_t kMaxBundlePieces = 256;  // the counts that one immediate can carry
constexpr std::uint32_t kReservedSlots = 2;      // send slots that messages leave to queries and replies

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

// ---------------------------------------------------------------------------------------------------------- posting

// Appends a piece to the bundle. Returns false if it must go in another operation.
bool FabricDomain::append_piece(Bundle& bundle, const Piece& piece, const LocalRegion* local,
                                const RemoteRegion* remote) const {
  const std::uint32_t counts = (bundle.immediate >> 24) + (piece.immediate >> 24) + 2;
  const bool both_count = piece.has_immediate() && (bundle.flags & kPieceImmediate) != 0;
  if (both_count && (counts > 256 || ((bundle.immediate ^ piece.immediate) & kCounterIdMask) != 0)) return false;
  if (piece.nbytes != 0) {
    if (bundle.pieces != 0 && bundle.nbytes + piece.nbytes > kMaxBundleNbytes) return false;
    if (bundle.segments == max_segments_) return false;
    const std::size_t at = bundle.segments++;
    bundle.local[at] = {reinterpret_cast<void*>(piece.local_addr), piece.nbytes};
    bundle.descs[at] = local->registration->mem_desc;
    bundle.remote[at] = {remote->key.base + piece.remote_offset, piece.nbytes, remote->key.key};
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
    const KeyBlob& empty_target = peer.remote.head.empty_target;
    bundle.local[0] = {empty_target_memory_, 0};
    bundle.descs[0] = empty_target_->mem_desc;
    bundle.remote[0] = {empty_target.base, 0, empty_target.key};
    bundle.segments = 1;
  }
  const abi::RmaMessage message{bundle.local.data(),       bundle.descs.data(),  bundle.segments,
                                peer.paired_nic().address, bundle.remote.data(), bundle.segments,
                                operation.context(),       bundle.immediate};
  abi::Ep* ep = peer.channel->endpoint.get();
  if (op == Op::read) return ep->rma->readmsg(ep, &message, abi::completion);
  operation.needs_ack = policy_.delivery;
  // Never FI_MORE: on EFA it defers the doorbell to a later post, which may not come.
  std::uint64_t flags = abi::completion;
  if ((bundle.flags & kPieceImmediate) != 0) flags |= abi::remote_cq_data;
  if (operation.requests_ack || (bundle.flags & kPieceDelivered) != 0) flags |= abi::delivery_complete;
  return ep->rma->writemsg(ep, &message, flags);
}

// With Policy::payload_first: posts the payload, and leaves the immediate to the caller. The outcome of the immediate
// covers the payload, since both are lost with the same connection.
ssize_t FabricDomain::post_payload_first(Peer& peer, Bundle& bundle) {
  if (!policy_.payload_first || bundle.segments == 0 || (bundle.flags & kPieceImmediate) == 0) return 0;
  const std::uint32_t flags = std::exchange(bundle.flags, 0);
  Operation& operation = acquire_operation(Operation::Kind::control, &peer);
  const ssize_t result = post_bundle(peer, Op::write, bundle, operation);
  bundle.flags = flags;
  if (result < 0) {
    release_operation(operation);
    return result;
  }
  on_posted(operation, bundle.nbytes);
  bundle.segments = 0;
  return 0;
}

// Accounts for an operation that the provider has accepted.
void FabricDomain::on_posted(Operation& operation, std::uint64_t nbytes) {
  Peer& peer = *operation.peer;
  operation.nbytes = nbytes;
  ++peer.in_flight;
  peer.nbytes_in_flight += nbytes;
  peer.stalled.reset();
  if (operation.needs_ack) peer.unacknowledged.push_back(&operation);
}

Posted FabricDomain::post(Flow& flow, std::uint32_t budget) {
  const Run& run = flow.run;
  Peer* peer = find(run.peer);
  if (peer == nullptr || !peer->joined || peer->disconnecting) return refuse_next(flow, kConnectionClosed);
  // Until it is known why the connection broke, another post could break it again.
  if (!peer->suspended.empty()) return Posted::full;
  if (policy_.needs_handshake && !peer->handshake_done()) {
    // The handshake has a deadline of its own: control frames that are posted and fail while no packet comes through
    // would reset `stalled` again and again.
    const std::chrono::duration<double> waited = Clock::now() - peer->handshake_since;
    if (waited < post_deadline_) return Posted::full;
    return refuse_next(flow,
                       {Status::provider, ETIMEDOUT,
                        "the peer's NIC has not answered for " + std::to_string(static_cast<int>(waited.count())) +
                            " s: no packet comes through; a security group or a firewall may block the path"});
  }
  const auto found_remote = remote_regions_.find(run.remote_region);
  const auto found_local = local_regions_.find(run.local_region);
  const RemoteRegion* remote = found_remote == remote_regions_.end() ? nullptr : &found_remote->second;
  const LocalRegion* local = found_local == local_regions_.end() ? nullptr : &found_local->second;
  if (peer->in_flight >= depth_) return on_blocked(*peer, flow);
  const std::uint32_t end = flow.next + std::min(budget, run.count - flow.next);
  while (flow.next < end && peer->in_flight < depth_) {
    Bundle bundle;
    const Outcome* refused = collect_bundle(bundle, flow, end, local, remote);
    if (bundle.pieces == 0) {
      post_trailing_ack(*peer);
      return refuse_next(flow, *refused);
    }
    const ssize_t result = post_pieces(*peer, flow, end, bundle, remote);
    if (result == 0) continue;
    post_trailing_ack(*peer);
    if (result == -EAGAIN) return on_blocked(*peer, flow);
    const int code = static_cast<int>(-result);
    return refuse_next(flow, {Status::provider, code, library_.strerror(code)});
  }
  return flow.next == end ? Posted::more : Posted::full;
}

// Accepts the flow's next piece, and reports it as stopped.
Posted FabricDomain::refuse_next(Flow& flow, const Outcome& outcome) {
  ++flow.next;
  ++flow.in_flight;
  sink_.stopped(flow, 1, outcome);
  return Posted::more;
}

// Takes as many of the flow's next pieces as one operation carries. Returns what is wrong with the piece that ended it,
// null where nothing is. The first valid piece always fits.
const Outcome* FabricDomain::collect_bundle(Bundle& bundle, const Flow& flow, std::uint32_t end,
                                            const LocalRegion* local, const RemoteRegion* remote) const {
  const std::uint32_t max_pieces = max_segments_ == 1 ? 1 : kMaxBundlePieces;
  const Outcome* refused = nullptr;
  for (std::uint32_t at = flow.next; at < end && bundle.pieces < max_pieces; ++at) {
    refused = validate(flow.run, flow.pieces[at], local, remote, attributes_.max_piece_nbytes);
    if (refused != nullptr || !append_piece(bundle, flow.pieces[at], local, remote)) break;
  }
  return refused;
}

// Posts a bundle of the flow's next pieces. Returns 0, or the negated error number; nothing was accepted then.
ssize_t FabricDomain::post_pieces(Peer& peer, Flow& flow, std::uint32_t end, Bundle& bundle,
                                  const RemoteRegion* remote) {
  Operation& operation = acquire_operation(Operation::Kind::piece, &peer);
  const bool last = flow.next + bundle.pieces == end || peer.in_flight + 1 == depth_;
  operation.requests_ack = policy_.delivery && (last || (bundle.segments == 1 && bundle.nbytes >= kAckNbytes));
  ssize_t result = post_payload_first(peer, bundle);
  if (result == 0) result = post_bundle(peer, flow.run.op, bundle, operation);
  if (result < 0) {
    release_operation(operation);
    return result;
  }
  operation.flow = &flow;
  operation.pieces = bundle.pieces;
  operation.serial = bundle.nbytes == 0 ? 0 : remote->key.serial;
  on_posted(operation, bundle.nbytes);
  flow.next += bundle.pieces;
  flow.in_flight += bundle.pieces;
  return 0;
}

// Requests an acknowledgement for the writes at the end of a batch that ended early: no later write covers them.
void FabricDomain::post_trailing_ack(Peer& peer) {
  if (peer.unacknowledged.empty() || peer.unacknowledged.back()->requests_ack) return;
  Operation& operation = acquire_operation(Operation::Kind::control, &peer);
  operation.requests_ack = true;
  Bundle bundle;
  const ssize_t result = post_bundle(peer, Op::write, bundle, operation);
  if (result == 0) return on_posted(operation, 0);
  release_operation(operation);
  // Their connection is gone. A later acknowledgement would arrive over another connection, and would prove nothing.
  suspend_unacknowledged(peer, ECANCELED);
}

// No room for this peer now. The post fails after `post_deadline_s` without progress.
Posted FabricDomain::on_blocked(Peer& peer, Flow& flow) {
  const auto now = Clock::now();
  if (!peer.stalled) peer.stalled = now;
  const std::chrono::duration<double> waited = now - *peer.stalled;
  const std::chrono::duration<double> in_flight_time(static_cast<double>(peer.nbytes_in_flight) / kMinBytesPerSecond);
  if (waited < post_deadline_ + in_flight_time) return Posted::full;
  peer.stalled = now;
  const std::string tail = " for " + std::to_string(static_cast<int>(waited.count())) + " s";
  const Outcome outcome{Status::provider, EAGAIN,
                        peer.in_flight != 0
                            ? std::to_string(peer.in_flight) + " operations in flight, and none completed" + tail +
                                  ": the peer is frozen, or no packet reaches it"
                            : "nothing could be posted" + tail +
                                  ": no connection to the peer's endpoint; it is gone, or a firewall blocks it"};
  return refuse_next(flow, outcome);
}

Posted FabricDomain::send(PeerNumber number, TransferId message, const std::string& payload) {
  Peer* peer = find(number);
  if (peer == nullptr || !peer->joined || peer->disconnecting) {
    sink_.sent(message, kConnectionClosed);
    return Posted::more;
  }
  if (payload.size() > attributes_.max_message_nbytes) {
    sink_.sent(message, {Status::provider, EMSGSIZE,
                         "the message exceeds " + std::to_string(attributes_.max_message_nbytes) + " bytes"});
    return Posted::more;
  }
  if (!peer->suspended.empty() || !peer->outbox.empty() || peer->channel->free_slots.size() <= kReservedSlots)
    return Posted::full;
  std::string frame;
  frame.reserve(sizeof(FrameHeader) + payload.size());
  append_record(frame, FrameHeader{peer->remote.head.token, FrameKind::message, 0, message, peer->token});
  frame += payload;
  const ssize_t result = post_frame(*peer, Operation::Kind::message, message, frame, peer->paired_nic().address);
  if (result == -EAGAIN) return Posted::full;
  if (result < 0) sink_.sent(message, {Status::provider, -result, library_.strerror(static_cast<int>(-result))});
  return Posted::more;
}

ssize_t FabricDomain::post_frame(Peer& peer, Operation::Kind kind, TransferId message, std::string_view frame,
                                 std::uint64_t to) {
  Channel& channel = *peer.channel;
  if (channel.free_slots.empty()) return -EAGAIN;
  Operation& operation = acquire_operation(kind, &peer);
  operation.message = message;
  operation.slot = channel.free_slots.back();
  std::memcpy(channel.at(operation.slot), frame.data(), frame.size());
  abi::Ep* ep = channel.endpoint.get();
  const ssize_t result =
      ep->msg->send(ep, channel.at(operation.slot), frame.size(), channel.desc(), to, operation.context());
  if (result < 0) {
    release_operation(operation);
    return result;
  }
  channel.free_slots.pop_back();
  ++peer.in_flight;
  return 0;
}

void FabricDomain::post_receive(Channel& channel, Peer* peer, std::uint32_t slot) {
  Operation& operation = acquire_operation(Operation::Kind::receive, peer);
  operation.slot = slot;
  abi::Ep* ep = channel.endpoint.get();
  const ssize_t result =
      ep->msg->recv(ep, channel.at(slot), channel.slot_nbytes, channel.desc(), abi::addr_unspec, operation.context());
  if (result == 0) return;
  release_operation(operation);
  if (result == -EAGAIN) unposted_receives_.emplace_back(peer, slot);
}

}  // namespace aio::libfabric
