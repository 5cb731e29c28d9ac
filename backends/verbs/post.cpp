// Posting: nothing here throws, but for memory running out.
#include <arpa/inet.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "../core/refusal.h"
#include "domain.h"

namespace aio::verbs {

namespace {

constexpr std::uint32_t kChain = 32;        // requests per call into the device's driver
constexpr std::uint32_t kSignalEvery = 16;  // slots come back in lots of this many
constexpr std::uint32_t kFlushNbytes = 8;

const Outcome kPeerGone{Status::peer_lost, 0, "the connection is closed"};

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
  if (peer == nullptr || !peer->joined) return refuse(kPeerGone);
  if (peer->deputy != nullptr) return peer->deputy->post(flow, budget);
  if (!peer->broken.ok()) return refuse(peer->broken);
  const RemoteRegion* far = remote_regions_.find(run.remote_region);
  const LocalRegion* near = local_regions_.find(run.local_region);
  keep_time();  // of what will be under way
  while (budget > 0 && flow.next < run.count) {
    // One slot more than pieces, for the read that flushes them.
    const std::uint32_t room = std::min(peer->data.room(), completions_room_);
    if (room < 2) return Posted::full;
    const std::uint32_t wanted = std::min({budget, room - 1, run.count - flow.next, kChain});
    const std::uint32_t before = flow.next;
    std::uint32_t fine = 0;
    const Outcome* refused = nullptr;
    const auto is_cut = [&](const Piece& piece) { return run.op == Op::read && piece.nbytes > peer->read_nbytes; };
    while (fine < wanted) {
      const Piece& piece = flow.pieces[before + fine];
      refused = refusal(run, piece, near, far, attributes_.max_piece_nbytes);
      if (refused != nullptr || is_cut(piece)) break;
      ++fine;
    }
    if (fine > 0 && !chain(*peer, flow, fine, near, far)) return Posted::more;
    budget -= fine;
    if (refused != nullptr) return refuse(*refused);
    if (fine == 0) {
      if (!read_part(*peer, flow, *near, *far)) return Posted::more;
      --budget;
    }
  }
  return Posted::more;
}

// Posts what comes next of a read that is cut. Each part counts as in flight; the piece is accepted with its last.
bool VerbsDomain::read_part(Peer& peer, Flow& flow, const LocalRegion& local, const RemoteRegion& remote) {
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
  if (result == 0 || bad == nullptr) {  // see chain()
    Request& entry = queue.at(queue.head);
    entry = {};
    entry.flow = &flow;
    entry.nbytes = nbytes;
    entry.vouched = queue.head;
    ++queue.head;
    --completions_room_;
    peer.nbytes += nbytes;
  }
  if (result == 0) return true;
  const Outcome cause{Status::provider, result, std::string("ibv_post_send: ") + std::strerror(result)};
  break_off(peer, cause);
  if (bad != nullptr) sink_.stopped(flow, 1, cause);
  return false;
}

// Posts `count` pieces as one chain. On failure the connection is over; what was accepted comes back flushed.
bool VerbsDomain::chain(Peer& peer, Flow& flow, std::uint32_t count, const LocalRegion* local,
                        const RemoteRegion* remote) {
  std::array<abi::SendWr, kChain + 1> requests;
  std::array<abi::Sge, kChain + 1> memory;
  if (count == 0) return true;
  Queue& queue = peer.data;
  const Piece* delivered = nullptr;  // the last piece that must be visible when it is reported
  std::uint32_t last_delivered = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    const Piece& piece = flow.pieces[flow.next + i];
    abi::SendWr& request = requests[i];
    request = {};
    request.wr_id = make_wr_id(queue.id, queue.head + i);
    request.next = &requests[i + 1];
    if (piece.nbytes != 0) {
      memory[i] = {piece.local_addr, static_cast<std::uint32_t>(piece.nbytes), local->registration->lkey};
      request.sg_list = &memory[i];
      request.num_sge = 1;
      request.remote_addr = remote->key.addr + piece.remote_offset;
      request.rkey = remote->key.rkey;
    }
    if (flow.run.op == Op::read && piece.nbytes != 0) {
      request.opcode = abi::wr_rdma_read;
    } else {
      // A read of nothing is posted as a write of nothing: Linux 6.1's rdma_rxe looks the missing key up.
      const bool counts = flow.run.op == Op::write && piece.has_immediate();
      request.opcode = counts ? abi::wr_rdma_write_with_imm : abi::wr_rdma_write;
      request.imm_data = htonl(piece.immediate);
      if (piece.nbytes != 0 && piece.nbytes <= queue.inline_nbytes && local->by_cpu) {
        request.send_flags |= abi::send_inline;
      }
      if (flow.run.op == Op::write && piece.nbytes != 0 && piece.needs_delivery()) {
        delivered = &piece;
        last_delivered = i;
      }
    }
  }
  // The device acknowledges a write when it has it, which is before another device can see it in memory. A read through
  // the same device pushes the write ahead of it: PCIe lets no read pass a posted write. Where the region may not be
  // read, a word of the peer's own memory is: the same for what lies in main memory, no proof for a GPU's.
  std::uint32_t total = count;
  if (delivered != nullptr) {
    abi::SendWr& request = requests[total];
    request = {};
    request.wr_id = make_wr_id(queue.id, queue.head + total);
    request.opcode = abi::wr_rdma_read;
    const bool readable = (remote->key.access & access_remote_read) != 0;
    const std::uint64_t end = remote->key.addr + delivered->remote_offset + delivered->nbytes;
    const auto nbytes = static_cast<std::uint32_t>(std::min<std::uint64_t>(kFlushNbytes, delivered->nbytes));
    memory[total] = {reinterpret_cast<std::uint64_t>(scratch()), readable ? nbytes : kFlushNbytes,
                     arena_registration_->lkey};
    request.sg_list = &memory[total];
    request.num_sge = 1;
    request.remote_addr = readable ? end - nbytes : peer.remote.anchor_addr;
    request.rkey = readable ? remote->key.rkey : peer.remote.anchor_rkey;
    ++total;
  }
  requests[total - 1].next = nullptr;
  requests[total - 1].send_flags |= abi::send_signaled;
  // None in between where a read flushes, since it would report what the read has yet to prove.
  for (std::uint32_t i = kSignalEvery - 1; delivered == nullptr && i < total; i += kSignalEvery) {
    requests[i].send_flags |= abi::send_signaled;
  }
  abi::SendWr* bad = nullptr;
  const int result = abi::post_send(queue.qp.get(), requests.data(), &bad);
  // rdma_rxe may refuse without saying which, and has them all in its queue then.
  const auto accepted = result == 0 || bad == nullptr ? total : static_cast<std::uint32_t>(bad - requests.data());
  for (std::uint32_t i = 0; i < accepted; ++i) {
    Request& entry = queue.at(queue.head);
    entry = {};
    entry.vouched = queue.head;
    ++queue.head;
    if (i == count) {
      entry.kind = Request::Kind::flush;
      continue;
    }
    entry.flow = &flow;
    entry.nbytes = flow.pieces[flow.next].nbytes;
    if (delivered != nullptr && i <= last_delivered) entry.vouched = queue.head + (count - i) - 1;
    peer.nbytes += entry.nbytes;
    ++flow.next;
    ++flow.in_flight;
  }
  completions_room_ -= accepted;
  if (result == 0) return true;
  const Outcome cause{Status::provider, result, std::string("ibv_post_send: ") + std::strerror(result)};
  break_off(peer, cause);
  if (accepted < count) {
    ++flow.next;
    ++flow.in_flight;
    sink_.stopped(flow, 1, cause);
  }
  return false;
}

}  // namespace aio::verbs
