// Data path: pieces and messages cut into packets, which leave later (send.cpp).
#include <algorithm>
#include <cerrno>
#include <utility>

#include "domain.h"

namespace aio::sim {

namespace {

std::uint32_t packets_of(std::uint64_t nbytes, std::uint64_t mtu) noexcept {
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(1, (nbytes + mtu - 1) / mtu));
}

}  // namespace

Packet SimDomain::make_packet(Kind kind, PeerNumber number, const Peer& peer, std::uint64_t operation) const {
  Packet packet;
  packet.peer = number;
  packet.header.kind = kind;
  packet.header.from = node_;
  packet.header.to = peer.node;
  packet.header.link = peer.their_link;
  packet.header.reply_link = peer.my_link;
  packet.header.operation = operation;
  return packet;
}

Packet& SimDomain::queue(Packet packet) {
  blocked_ = false;
  return outbound_.emplace_back(std::move(packet));
}

void SimDomain::fail_next(Flow& flow, const Outcome& outcome) {
  ++flow.next;
  ++flow.in_flight;
  sink_.stopped(flow, 1, outcome);
}

Posted SimDomain::post(Flow& flow, std::uint32_t budget) {
  const auto found = peers_.find(flow.run.peer);
  if (found == peers_.end() || found->second.node == 0) {
    fail_next(flow, {Status::peer_lost, 0, "the peer is not connected"});
    return Posted::more;
  }
  Peer& peer = found->second;
  const RemoteRegion* remote = nullptr;
  if (flow.run.remote_region != 0) {
    const auto region = remote_regions_.find(flow.run.remote_region);
    if (region == remote_regions_.end() || region->second.peer != flow.run.peer) {
      fail_next(flow, {Status::stale_region, 0, "it is not registered with this connection"});
      return Posted::more;
    }
    remote = &region->second;
  }
  for (; budget != 0 && !flow.exhausted(); --budget) {
    if (peer.in_flight >= fabric_->faults().depth || fabric_->refuses_post(node_)) return Posted::full;
    const Piece& piece = flow.pieces[flow.next];
    if (fabric_->fails_post(node_)) {
      fail_next(flow, {Status::provider, EIO, "the simulated fabric failed the post"});
      return Posted::more;
    }
    if (remote == nullptr && piece.nbytes != 0) {
      fail_next(flow, {Status::provider, ERANGE, "a payload names no region of the peer's"});
      return Posted::more;
    }
    post_piece(flow, peer, remote, piece);
  }
  return Posted::more;
}

void SimDomain::post_piece(Flow& flow, Peer& peer, const RemoteRegion* remote, const Piece& piece) {
  ++flow.next;
  ++flow.in_flight;
  ++peer.in_flight;
  const std::uint64_t id = ++last_operation_;
  Operation& operation = operations_[id];
  operation = {flow.run.peer, &flow, 0, reinterpret_cast<std::byte*>(piece.local_addr), piece.nbytes, 0, {}};
  if (flow.run.op == Op::write) {
    operation.unanswered = queue_write(make_packet(Kind::write, flow.run.peer, peer, id), remote, piece);
  } else {
    operation.unanswered = queue_read(make_packet(Kind::read, flow.run.peer, peer, id), *remote, piece);
  }
}

std::uint32_t SimDomain::queue_write(const Packet& blank, const RemoteRegion* remote, const Piece& piece) {
  const bool fails = fabric_->fails_completion(node_);
  std::uint64_t mtu = fabric_->faults().mtu;
  if (fails) mtu = std::clamp<std::uint64_t>(piece.nbytes / 2, 1, mtu);  // so that one half may arrive, and one not
  const std::uint32_t packets = packets_of(piece.nbytes, mtu);
  for (std::uint32_t i = 0; i < packets; ++i) {
    const std::uint64_t begin = i * mtu;
    Packet& packet = queue(blank);
    if (fails && i >= packets / 2) packet.header.kind = Kind::dropped;
    packet.header.key = remote != nullptr ? remote->key : 0;
    packet.header.offset = piece.remote_offset + begin;
    packet.header.has_immediate = piece.has_immediate() ? 1 : 0;
    packet.header.immediate = piece.immediate;
    packet.header.packets = packets;
    if (packet.header.kind == Kind::dropped) continue;
    packet.header.nbytes = static_cast<std::uint32_t>(std::min(mtu, piece.nbytes - begin));
    packet.source = reinterpret_cast<const std::byte*>(piece.local_addr) + begin;
  }
  return packets;
}

std::uint32_t SimDomain::queue_read(const Packet& blank, const RemoteRegion& remote, const Piece& piece) {
  const std::uint64_t mtu = fabric_->faults().mtu;
  const std::uint32_t packets = packets_of(piece.nbytes, mtu);
  for (std::uint32_t i = 0; i < packets; ++i) {
    Packet& packet = queue(blank);
    packet.header.key = remote.key;
    packet.header.at = i * mtu;
    packet.header.offset = piece.remote_offset + packet.header.at;
    packet.header.nbytes = static_cast<std::uint32_t>(std::min(mtu, piece.nbytes - packet.header.at));
    packet.header.packets = packets;
  }
  return packets;
}

Posted SimDomain::send(PeerNumber number, TransferId message, const std::string& payload) {
  const auto found = peers_.find(number);
  if (found == peers_.end() || found->second.node == 0) {
    sink_.sent(message, kPeerLost);
    return Posted::more;
  }
  Peer& peer = found->second;
  if (peer.in_flight >= fabric_->faults().depth || fabric_->refuses_post(node_)) return Posted::full;
  ++peer.in_flight;
  const std::uint64_t id = ++last_operation_;
  operations_[id] = {number, nullptr, message, nullptr, 0, 1, {}};
  queue(make_packet(Kind::message, number, peer, id)).payload = payload;
  return Posted::more;
}

}  // namespace aio::sim
