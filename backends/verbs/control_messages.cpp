// Frames over the message QPs: the engine's messages, and revocations. Reliable and in order, so nothing is
// retransmitted here; if a frame is lost, so is the connection.
#include <arpa/inet.h>

#include <cerrno>
#include <cstring>

#include "domain.h"

namespace aio::verbs {

namespace {

constexpr std::size_t kMaxStale = 16384;
constexpr std::size_t kMaxRevocations = 65536;

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

Posted VerbsDomain::send(PeerNumber number, TransferId message, const std::string& payload) {
  Peer* peer = find(number);
  const auto end = [&](const Outcome& outcome) {
    sink_.sent(message, outcome);
    return Posted::more;
  };
  if (peer == nullptr || !peer->joined) return end(kConnectionClosed);
  if (!peer->failure.ok()) return end(peer->failure);
  if (payload.size() > std::min<std::size_t>(attributes_.max_message_nbytes, peer->remote.slot_nbytes)) {
    return end({Status::provider, EMSGSIZE, "the message exceeds what the peer receives"});
  }
  flush_outbox(*peer);
  if (peer->held_slots >= kMaxSlotsPerPeer || !peer->outbox.empty() || free_slots_.size() <= kReservedSlots)
    return Posted::full;
  if (!post_frame(*peer, FrameKind::message, message, payload)) {
    if (peer->failure.ok()) return Posted::full;
    return end(peer->failure);
  }
  ++peer->held_slots;
  return Posted::more;
}

// Returns false if there is no room, or if the connection has just failed.
bool VerbsDomain::post_frame(Peer& peer, FrameKind kind, TransferId message, const std::string& bytes) {
  Queue& queue = peer.messages;
  if (queue.room() == 0 || free_cq_entries_ == 0) return false;
  const bool within = bytes.size() <= queue.inline_nbytes;  // inline: the device copies it while posting
  if (!within && free_slots_.empty()) return false;
  const std::uint32_t slot = within ? kNoSlot : free_slots_.back();
  const char* source = bytes.data();
  if (!within) {
    std::byte* const copy = arena_.get() + slot * slot_nbytes_;
    std::memcpy(copy, bytes.data(), bytes.size());
    source = reinterpret_cast<const char*>(copy);
  }
  abi::Sge memory{reinterpret_cast<std::uint64_t>(source), static_cast<std::uint32_t>(bytes.size()),
                  arena_registration_->lkey};
  abi::SendWr request{};
  request.wr_id = make_wr_id(queue.id, queue.head);
  request.sg_list = &memory;
  request.num_sge = bytes.empty() ? 0 : 1;
  request.opcode = abi::wr_send_with_imm;
  request.send_flags = abi::send_signaled | (within ? abi::send_inline : 0u);
  request.imm_data = htonl(static_cast<std::uint32_t>(kind));
  abi::SendWr* bad = nullptr;
  if (const int result = abi::post_send(queue.qp.get(), &request, &bad); result != 0) {
    fail_connection(peer, {Status::provider, result, std::string("ibv_post_send: ") + std::strerror(result)});
    return false;
  }
  if (!within) free_slots_.pop_back();
  Request& entry = queue.at(queue.head);
  entry = {};
  entry.kind = kind == FrameKind::message ? Request::Kind::message : Request::Kind::control;
  entry.message = message;
  entry.confirmed_by = queue.head;
  entry.slot = slot;
  ++queue.head;
  --free_cq_entries_;
  return true;
}

void VerbsDomain::queue_frame(Peer& peer, FrameKind kind, std::string bytes) {
  peer.outbox.emplace_back(kind, std::move(bytes));
  flush_outbox(peer);
  if (!peer.outbox.empty()) blocked_outboxes_.insert(peer.number);
}

void VerbsDomain::flush_outbox(Peer& peer) {
  while (!peer.outbox.empty() && peer.failure.ok()) {
    if (!post_frame(peer, peer.outbox.front().first, 0, peer.outbox.front().second)) break;
    peer.outbox.pop_front();
  }
  if (!peer.failure.ok()) peer.outbox.clear();
}

// Called whenever slots may have been freed: a peer with nothing in flight gets no completion of its own.
void VerbsDomain::flush_outboxes() {
  for (auto next = blocked_outboxes_.begin(); next != blocked_outboxes_.end();) {
    Peer* peer = find(*next);
    if (peer != nullptr) flush_outbox(*peer);
    next = peer == nullptr || peer->outbox.empty() ? blocked_outboxes_.erase(next) : std::next(next);
  }
}

void VerbsDomain::on_frame(Peer& peer, FrameKind kind, std::string_view bytes) {
  if (kind == FrameKind::message) return sink_.message(peer.number, std::string(bytes));
  if (bytes.size() != sizeof(std::uint64_t)) return;
  const auto serial = read_record<std::uint64_t>(bytes);
  if (kind == FrameKind::revoke) {
    peer.stale_serials.insert(serial);
    if (peer.stale_serials.size() > kMaxStale) peer.stale_serials.erase(peer.stale_serials.begin());
    for (auto& [number, region] : remote_regions_) {
      if (region.peer == peer.number && region.key.serial == serial) region.dead = true;
    }
    if (peer.revocations.size() < kMaxRevocations) peer.revocations.emplace_back(peer.data.head, serial);
    acknowledge_revocations(peer);
  } else if (kind == FrameKind::revoked) {
    for (const RegionNumber number : deregistering_) {
      LocalRegion& region = *local_regions_.find(number);
      if (region.serial == serial) region.waits_for.erase(peer.number);
    }
    finish_deregistrations();
  }
}

void VerbsDomain::acknowledge_revocations(Peer& peer) {
  while (!peer.revocations.empty() && peer.revocations.front().first <= peer.data.tail) {
    const std::uint64_t serial = peer.revocations.front().second;
    peer.revocations.pop_front();
    queue_frame(peer, FrameKind::revoked, to_bytes(serial));
  }
}

}  // namespace aio::verbs
