// Connections: creation of QPs, connecting them, and teardown.
#include <poll.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <random>

#include "domain.h"

namespace aio::verbs {

namespace {

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

// RNR NAK timer code of 0.64 ms; perftest's and UCX's defaults are within a factor of two. ibv_modify_qp(3).
constexpr std::uint8_t kRnrTimer = 12;
constexpr std::uint64_t kMaxReadPacketsOnRxe = 64;
constexpr int kMaxRounds = 64;  // of up to 1,024 completions each

// Time for the event that says that a QP holds no more shared receives. A device sends it within microseconds. Linux
// 6.1's rdma_rxe never does; its tasklet gets 1 ms to finish.
constexpr std::chrono::milliseconds kReceivesTimeout{20}, kReceivesTimeoutOnRxe{1};

void check(const char* what, int result) {
  if (result != 0) throw Failure(Failure::Kind::provider, what, std::strerror(result), result);
}

void move_to_error(const Library& library, const Queue& queue) noexcept {
  abi::QpAttr attr{};
  attr.qp_state = abi::state_err;
  if (queue.qp) library.modify_qp(queue.qp.get(), &attr, abi::mask_state);
}

}  // namespace

Peer* VerbsDomain::find(PeerNumber number) noexcept {
  const auto* found = peers_.find(number);
  return found == nullptr ? nullptr : found->get();
}

Queue VerbsDomain::create_queue(std::uint32_t depth, std::uint32_t inline_nbytes, abi::Srq* srq) {
  if (next_queue_ >= kMaxQueues) throw Failure(Failure::Kind::provider, "connect", "too many connections", EMFILE);
  abi::QpInitAttr attr{};
  attr.qp_context = this;
  attr.send_cq = attr.recv_cq = cq_.get();
  attr.srq = srq;
  attr.qp_type = abi::qp_type_rc;
  abi::Qp* qp = nullptr;
  // The largest inline size cannot be queried; ibv_create_qp only refuses what is too large.
  for (std::uint32_t wanted = inline_nbytes;; wanted = wanted > 64 ? 64 : 0) {
    attr.cap = {depth, 0, 1, 0, wanted};
    errno = 0;
    qp = library_.create_qp(pd_.get(), &attr);
    if (qp != nullptr || wanted == 0) break;
  }
  if (qp == nullptr) check("ibv_create_qp", errno != 0 ? errno : EINVAL);
  Queue queue;
  queue.qp = {qp, library_.destroy_qp, &handles_};
  queue.id = next_queue_++;
  queue.depth = depth;
  queue.inline_nbytes = std::min(attr.cap.max_inline_data, inline_nbytes);
  queue.ring.resize(std::bit_ceil(depth));
  abi::QpAttr init{};
  init.qp_state = abi::state_init;
  init.port_num = port_.number;
  init.qp_access_flags = abi::access_remote_read | abi::access_remote_write;  // each memory region limits it further
  check(
      "ibv_modify_qp to INIT",
      library_.modify_qp(qp, &init, abi::mask_state | abi::mask_pkey_index | abi::mask_port | abi::mask_access_flags));
  return queue;
}

Endpoint VerbsDomain::connect(PeerNumber number, const std::optional<Endpoint>& remote) {
  if (!device_failure_.ok())
    throw Failure(Failure::Kind::provider, port_.name, device_failure_.reason, device_failure_.code);
  Peer* peer = find(number);
  const bool is_new = peer == nullptr;
  if (is_new) {
    auto created = std::make_unique<Peer>();
    peer = created.get();
    peer->number = number;
    peer->data = create_queue(settings_.depth, settings_.inline_nbytes, immediate_receives_.get());
    peer->messages = create_queue(kMessageDepth, 64, message_receives_.get());
    write_blob(*peer);
    peers_.emplace(number, std::move(created));
    for (Queue* queue : {&peer->data, &peer->messages}) {
      queues_.emplace(queue->id, std::pair(peer, queue));
      peers_by_qpn_.emplace(queue->qp->qp_num, peer);
    }
  }
  if (remote) {
    try {
      join(*peer, *remote);
    } catch (const Failure&) {
      if (is_new) destroy(*peer);
      throw;
    }
  }
  return {peer->blob, {}};
}

void VerbsDomain::join(Peer& peer, const Endpoint& remote) {
  if (peer.joined) {
    if (remote.blob == peer.remote_blob) return;
    throw Failure(Failure::Kind::usage, "connect", "the peer is already connected to another endpoint");
  }
  const EndpointBlob blob = unpack_endpoint(remote.blob);
  const EndpointHead own = read_record<EndpointHead>(peer.blob);
  // Rail k connects to rail k. On the side with more NICs, surplus rails pass their traffic to one that has a partner:
  // the smaller number of NICs is the bottleneck anyway, and a QP connects to one other only.
  if (blob.head.rail != rail_ % blob.head.rails) {
    throw Failure(Failure::Kind::usage, "connect", "the peer's endpoint belongs to another rail");
  }
  if (blob.head.rail != rail_) {
    peer.alternate_rail = rails_->domains[blob.head.rail];
    destroy_queues(peer);
  } else {
    const abi::AhAttr route = make_route(blob);
    const auto mtu = 128u << std::min<std::uint32_t>(port_.attr.active_mtu, blob.head.mtu);
    if (port_.is_rxe()) peer.read_nbytes = kMaxReadPacketsOnRxe * mtu;
    connect_queue(peer.data, route, blob.head, blob.head.data_qpn, blob.head.data_psn, own.data_psn);
    connect_queue(peer.messages, route, blob.head, blob.head.message_qpn, blob.head.message_psn, own.message_psn);
  }
  peer.remote = blob.head;
  peer.remote_blob = remote.blob;
  peer.joined = true;
}

void VerbsDomain::connect_queue(Queue& queue, const abi::AhAttr& route, const EndpointHead& remote, std::uint32_t qpn,
                                std::uint32_t psn, std::uint32_t own_psn) {
  abi::QpAttr attr{};
  attr.qp_state = abi::state_rtr;
  attr.path_mtu = std::min<std::uint32_t>(port_.attr.active_mtu, remote.mtu);
  attr.dest_qp_num = qpn;
  attr.rq_psn = psn & 0xffffff;
  attr.max_dest_rd_atomic = max_reads(port_.device.max_qp_rd_atom);
  attr.min_rnr_timer = kRnrTimer;
  attr.ah_attr = route;
  check("ibv_modify_qp to RTR",
        library_.modify_qp(queue.qp.get(), &attr,
                           abi::mask_state | abi::mask_av | abi::mask_path_mtu | abi::mask_dest_qpn | abi::mask_rq_psn |
                               abi::mask_max_dest_rd_atomic | abi::mask_min_rnr_timer));
  attr = {};
  attr.qp_state = abi::state_rts;
  attr.sq_psn = own_psn & 0xffffff;
  attr.timeout = settings_.timeout;
  attr.retry_cnt = settings_.retries;
  attr.rnr_retry = settings_.rnr_retries;
  attr.max_rd_atomic = max_reads(std::min<int>(port_.device.max_qp_init_rd_atom, remote.max_dest_rd_atomic));
  check("ibv_modify_qp to RTS",
        library_.modify_qp(queue.qp.get(), &attr,
                           abi::mask_state | abi::mask_sq_psn | abi::mask_timeout | abi::mask_retry_cnt |
                               abi::mask_rnr_retry | abi::mask_max_rd_atomic));
}

// ---------------------------------------------------------------------------------------------------------- teardown

void VerbsDomain::disconnect(PeerNumber number, bool /*lost*/) {
  Peer* peer = find(number);
  if (peer != nullptr) {
    // Report what has ended successfully, and count what the peer had sent. One fence serves both a goodbye and a lost
    // peer: before a goodbye, the peer has waited for its acknowledgements.
    for (int round = 0; round < kMaxRounds && poll_completions(); ++round) {
    }
    peer->failure = kConnectionClosed;
    destroy(*peer);
  }
  finish_deregistrations();  // the peer's acknowledgements are not waited for any more
  sink_.fenced(number);
}

// When it returns, nothing of the peer can reach our memory, and nothing is in flight.
void VerbsDomain::destroy(Peer& peer) {
  destroy_queues(peer);
  blocked_outboxes_.erase(peer.number);
  peers_.erase(peer.number);
}

void VerbsDomain::destroy_queues(Peer& peer) {
  // In the error state the device accepts no more packets. What it had accepted before is polled while the QP exists:
  // some providers drop the completions of a destroyed QP, and with them counts.
  move_to_error(library_, peer.data);
  move_to_error(library_, peer.messages);
  wait_for_receives(peer);
  for (int round = 0; round < kMaxRounds && poll_completions(); ++round) {
  }
  for (Queue* queue : {&peer.data, &peer.messages}) {
    if (!queue->qp) continue;
    peers_by_qpn_.erase(queue->qp->qp_num);
    queue->qp.reset();
    fail_remaining(peer, *queue);
    queues_.erase(queue->id);
  }
  poll_completions();  // completions that a provider leaves behind would fill the CQ
}

// A QP takes receives from the shared queues before the messages are complete. In the error state they complete, and
// the device reports the last one. Receives of a QP that is destroyed earlier are lost, until none is left for any
// peer.
void VerbsDomain::wait_for_receives(const Peer& peer) {
  if (!peer.joined || peer.alternate_rail != nullptr) return;
  const auto until = Clock::now() + (port_.is_rxe() ? kReceivesTimeoutOnRxe : kReceivesTimeout);
  while (!peer.data.receives_returned || !peer.messages.receives_returned) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    if (left <= 0) return;
    pollfd reported{port_.context->async_fd, POLLIN, 0};
    ::poll(&reported, 1, static_cast<int>(left));
    poll_events();
  }
}

void VerbsDomain::fail_connection(Peer& peer, Outcome cause) {
  if (!peer.failure.ok()) return;
  // The cause belongs to one request; every later one failed because the connection is gone.
  if (cause.status != Status::peer_lost) {
    cause = {Status::peer_lost, cause.code, "the connection broke: " + cause.reason};
  }
  peer.failure = std::move(cause);
  move_to_error(library_, peer.data);
  move_to_error(library_, peer.messages);
  // Requests in flight come back flushed. The engine disconnects when it learns of the failure; what is left is
  // reported then. A copy, since the peer may be gone when peer_failed() returns.
  const Outcome reported = peer.failure;
  sink_.peer_failed(peer.number, reported);
}

void VerbsDomain::fail_all_connections(const Outcome& cause) {
  for (auto& [number, peer] : peers_) fail_connection(*peer, cause);
}

}  // namespace aio::verbs
