// Posting of work requests. Nothing here throws, except for std::bad_alloc.
#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "../core/validation.h"
#include "domain.h"

namespace aio::verbs {

namespace {

constexpr std::uint32_t kSignalInterval = 16;  // slots are freed in batches of this size
constexpr std::uint32_t kFlushNbytes = 8;

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

Posted VerbsDomain::post(Flow& flow, std::uint32_t budget) {
  const Run& run = flow.run;
  Peer* peer = find(run.peer);
  const auto refuse = [&](const Outcome& outcome) {
    ++flow.next;
    ++flow.in_flight;
    sink_.stopped(flow, 1, outcome);
    return Posted::more;
  };
  if (peer == nullptr || !peer->joined) return refuse(kConnectionClosed);
  if (peer->alternate_rail != nullptr) return peer->alternate_rail->post(flow, budget);
  if (!peer->failure.ok()) return refuse(peer->failure);
  const RemoteRegion* remote = remote_regions_.find(run.remote_region);
  const LocalRegion* local = local_regions_.find(run.local_region);
  start_timer();  // for the stall check of what is posted now
  while (budget > 0 && flow.next < run.count) {
    // One slot is reserved for the read that flushes the pieces.
    const std::uint32_t room = std::min(peer->data.room(), free_cq_entries_);
    if (room < 2) return Posted::full;
    const std::uint32_t wanted = std::min({budget, room - 1, run.count - flow.next, kMaxChain});
    const Outcome* refused = nullptr;
    const std::uint32_t valid = count_valid(*peer, flow, wanted, local, remote, refused);
    if (valid > 0 && !post_chain(*peer, flow, valid, local, remote)) return Posted::more;
    budget -= valid;
    if (refused != nullptr) return refuse(*refused);
    if (valid == 0) {
      if (!post_read_segment(*peer, flow, *local, *remote)) return Posted::more;
      --budget;
    }
  }
  return Posted::more;
}

// Counts how many of the flow's next pieces fit into one chain. Sets `refused` if the piece after them is invalid;
// otherwise that piece, if one is wanted, is a read that must be segmented.
std::uint32_t VerbsDomain::count_valid(const Peer& peer, const Flow& flow, std::uint32_t wanted,
                                       const LocalRegion* local, const RemoteRegion* remote,
                                       const Outcome*& refused) const noexcept {
  std::uint32_t valid = 0;
  for (; valid < wanted; ++valid) {
    const Piece& piece = flow.pieces[flow.next + valid];
    refused = validate(flow.run, piece, local, remote, attributes_.max_piece_nbytes);
    if (refused != nullptr || (flow.run.op == Op::read && piece.nbytes > peer.read_nbytes)) break;
  }
  return valid;
}

// Posts the next segment of a long read. Each segment counts as in flight; the piece is accepted with its last one.
bool VerbsDomain::post_read_segment(Peer& peer, Flow& flow, const LocalRegion& local, const RemoteRegion& remote) {
  Queue& queue = peer.data;
  const Piece& piece = flow.pieces[flow.next];
  const std::uint64_t nbytes = std::min(piece.nbytes - flow.offset, peer.read_nbytes);
  abi::Sge memory{piece.local_addr + flow.offset, static_cast<std::uint32_t>(nbytes), local.registration->lkey};
  abi::SendWr request{};
  request.wr_id = make_wr_id(queue.id, queue.head);
  request.sg_list = &memory;
  request.num_sge = 1;
  request.opcode = abi::wr_rdma_read;
  request.send_flags = abi::send_signaled;
  request.remote_addr = remote.key.addr + piece.remote_offset + flow.offset;
  request.rkey = remote.key.rkey;
  abi::SendWr* bad = nullptr;
  const int result = abi::post_send(queue.qp.get(), &request, &bad);
  ++flow.in_flight;
  flow.offset += nbytes;
  if (result != 0 || flow.offset == piece.nbytes) {
    flow.offset = 0;
    ++flow.next;
  }
  if (result == 0 || bad == nullptr) {  // see post_chain()
    Request& entry = queue.at(queue.head);
    entry = {};
    entry.flow = &flow;
    entry.nbytes = nbytes;
    entry.confirmed_by = queue.head;
    ++queue.head;
    --free_cq_entries_;
    peer.nbytes += nbytes;
  }
  if (result == 0) return true;
  const Outcome cause{Status::provider, result, std::string("ibv_post_send: ") + std::strerror(result)};
  fail_connection(peer, cause);
  if (bad != nullptr) sink_.stopped(flow, 1, cause);
  return false;
}

// Posts `count` pieces as one chain. On failure the connection is over; what the device had accepted comes back
// flushed.
bool VerbsDomain::post_chain(Peer& peer, Flow& flow, std::uint32_t count, const LocalRegion* local,
                             const RemoteRegion* remote) {
  Queue& queue = peer.data;
  Chain chain;
  chain.pieces = chain.total = count;
  for (std::uint32_t i = 0; i < count; ++i) build_request(chain, i, queue, flow, local, remote);
  if (chain.delivered != nullptr) append_flush_read(chain, peer, *remote);
  chain.requests[chain.total - 1].next = nullptr;
  chain.requests[chain.total - 1].send_flags |= abi::send_signaled;
  // If a read flushes, no earlier request is signaled: its completion would report what the read has yet to prove.
  for (std::uint32_t i = kSignalInterval - 1; chain.delivered == nullptr && i < chain.total; i += kSignalInterval) {
    chain.requests[i].send_flags |= abi::send_signaled;
  }
  abi::SendWr* bad = nullptr;
  const int result = abi::post_send(queue.qp.get(), chain.requests.data(), &bad);
  // Linux 6.1's rdma_rxe may fail without naming the refused request, and has then queued the whole chain.
  const auto accepted =
      result == 0 || bad == nullptr ? chain.total : static_cast<std::uint32_t>(bad - chain.requests.data());
  record_posted(chain, accepted, peer, flow);
  if (result == 0) return true;
  const Outcome cause{Status::provider, result, std::string("ibv_post_send: ") + std::strerror(result)};
  fail_connection(peer, cause);
  if (accepted < count) {
    ++flow.next;
    ++flow.in_flight;
    sink_.stopped(flow, 1, cause);
  }
  return false;
}

void VerbsDomain::build_request(Chain& chain, std::uint32_t at, const Queue& queue, const Flow& flow,
                                const LocalRegion* local, const RemoteRegion* remote) noexcept {
  const Piece& piece = flow.pieces[flow.next + at];
  abi::SendWr& request = chain.requests[at];
  request = {};
  request.wr_id = make_wr_id(queue.id, queue.head + at);
  request.next = &chain.requests[at + 1];
  if (piece.nbytes != 0) {
    chain.memory[at] = {piece.local_addr, static_cast<std::uint32_t>(piece.nbytes), local->registration->lkey};
    request.sg_list = &chain.memory[at];
    request.num_sge = 1;
    request.remote_addr = remote->key.addr + piece.remote_offset;
    request.rkey = remote->key.rkey;
  }
  if (flow.run.op == Op::read && piece.nbytes != 0) {
    request.opcode = abi::wr_rdma_read;
    return;
  }
  // An empty read is posted as an empty write: Linux 6.1's rdma_rxe looks up the key of an empty read, and has none.
  const bool counts = flow.run.op == Op::write && piece.has_immediate();
  request.opcode = counts ? abi::wr_rdma_write_with_imm : abi::wr_rdma_write;
  request.imm_data = htonl(piece.immediate);
  if (piece.nbytes != 0 && piece.nbytes <= queue.inline_nbytes && local->cpu_accessible) {
    request.send_flags |= abi::send_inline;
  }
  if (flow.run.op == Op::write && piece.nbytes != 0 && piece.needs_delivery()) {
    chain.delivered = &piece;
    chain.last_delivered = at;
  }
}

// The device acknowledges a write when it has received it, which is before another device can see it in memory. A read
// through the same device pushes the write ahead of it: a PCIe read never passes a posted write. Where peers may not
// read the region, a word of the peer's main memory is read instead: the same proof for main memory, none for a GPU's.
void VerbsDomain::append_flush_read(Chain& chain, const Peer& peer, const RemoteRegion& remote) noexcept {
  const std::uint32_t at = chain.total++;
  abi::SendWr& request = chain.requests[at];
  request = {};
  request.wr_id = make_wr_id(peer.data.id, peer.data.head + at);
  request.opcode = abi::wr_rdma_read;
  const bool readable = (remote.key.access & access_remote_read) != 0;
  const std::uint64_t end = remote.key.addr + chain.delivered->remote_offset + chain.delivered->nbytes;
  const auto nbytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(kFlushNbytes, chain.delivered->nbytes));
  chain.memory[at] = {reinterpret_cast<std::uint64_t>(flush_target()), readable ? nbytes : kFlushNbytes,
                      arena_registration_->lkey};
  request.sg_list = &chain.memory[at];
  request.num_sge = 1;
  request.remote_addr = readable ? end - nbytes : peer.remote.flush_addr;
  request.rkey = readable ? remote.key.rkey : peer.remote.flush_rkey;
}

// Enters the first `accepted` requests of the chain into the queue's ring.
void VerbsDomain::record_posted(const Chain& chain, std::uint32_t accepted, Peer& peer, Flow& flow) noexcept {
  Queue& queue = peer.data;
  const std::uint64_t flush_number = queue.head + chain.pieces;
  for (std::uint32_t i = 0; i < accepted; ++i) {
    Request& entry = queue.at(queue.head);
    entry = {};
    entry.confirmed_by = queue.head++;
    if (i == chain.pieces) {
      entry.kind = Request::Kind::flush;
      continue;
    }
    entry.flow = &flow;
    entry.nbytes = flow.pieces[flow.next].nbytes;
    if (chain.delivered != nullptr && i <= chain.last_delivered) entry.confirmed_by = flush_number;
    peer.nbytes += entry.nbytes;
    ++flow.next;
    ++flow.in_flight;
  }
  free_cq_entries_ -= accepted;
}

}  // namespace aio::verbs
