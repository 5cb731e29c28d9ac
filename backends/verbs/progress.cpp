// Progress: completions, asynchronous events, timers. wc.opcode is undefined in a failed completion, so a completion is
// attributed by its wr_id alone.
#include <arpa/inet.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string>

#include "domain.h"

namespace aio::verbs {

namespace {

constexpr int kMaxBatches = 16;  // bounds a call, so that arrivals alone do not keep the worker from posting
constexpr std::uint32_t kPassesPerCheck = 4096;  // half a millisecond
constexpr std::uint32_t kMaxReceiveChain = 64;
// Receives are posted again in batches, not by one call per arriving immediate.
constexpr std::uint32_t kReceiveBatch = 16;
static_assert(kReceiveBatch < kImmediateReceives / 64);

constexpr std::uint32_t kArmsPerCheck = 64;  // upper limit, if every wake-up brings completions
constexpr auto kTimerPeriod = std::chrono::milliseconds(250);
constexpr double kMinBytesPerSecond = 10e6;  // time that the payload in flight is granted before it counts as stalled

const Outcome kConnectionClosed{Status::peer_lost, 0, "the connection is closed"};

timespec as_timespec(std::chrono::nanoseconds time) {
  return {time.count() / 1'000'000'000, time.count() % 1'000'000'000};
}

}  // namespace

bool VerbsDomain::progress() {
  bool moved = poll_completions();
  // A worker about to sleep checks the other descriptors in arm(). One that never sleeps does so here.
  if (++progress_calls_ % kPassesPerCheck == 0) moved |= check_events();
  return moved;
}

std::optional<std::vector<int>> VerbsDomain::arm() {
  // The wake-up was most likely a completion; then no other descriptor is checked, since each check is a system call.
  const bool checks = !std::exchange(polled_some_, false) || ++arms_since_check_ == kArmsPerCheck;
  bool moved = false;
  if (checks) {
    arms_since_check_ = 0;
    moved = check_events();
  } else {
    start_timer_if_needed();
  }
  // Arming signals once, and an event that is not taken would keep the descriptor readable.
  abi::Cq* cq = nullptr;
  void* context = nullptr;
  if (armed_ && library_.get_cq_event(channel_.get(), &cq, &context) == 0) {
    library_.ack_cq_events(cq_.get(), 1);
    armed_ = false;
  }
  // An armed CQ that has not signaled stays armed. Should its event have been lost, it is armed again at the next
  // check.
  if (!armed_ || checks) {
    armed_ = abi::req_notify_cq(cq_.get()) == 0;
    // What arrived before arming is not signaled: poll once more.
    moved |= poll_completions();
  }
  if (moved) return std::nullopt;
  return std::vector<int>{channel_->fd, port_.context->async_fd, timer_.get()};
}

bool VerbsDomain::poll_completions() {
  std::array<abi::Wc, 64> entries;
  bool moved = false;
  for (int batch = 0; batch < kMaxBatches; ++batch) {
    const int count = abi::poll_cq(cq_.get(), entries.size(), entries.data());
    if (count < 0 && device_failure_.ok()) {
      device_failure_ = {Status::provider, -count, port_.name + ": ibv_poll_cq failed"};
      fail_all_connections(device_failure_);
    }
    if (count <= 0) break;
    for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) on_completion(entries[i]);
    if (immediate_receives_used_ >= kReceiveBatch) post_immediate_receives(immediate_receives_used_);
    post_message_receives();
    moved = polled_some_ = true;
    if (static_cast<std::size_t>(count) < entries.size())
      break;  // usually there are no more, and later ones signal the channel
  }
  // Slots and CQ entries are shared: what has retired may unblock another peer.
  if (moved && !blocked_outboxes_.empty()) flush_outboxes();
  return moved;
}

void VerbsDomain::on_completion(const abi::Wc& wc) {
  const std::uint32_t id = queue_of(wc.wr_id);
  if (id == kImmediateReceive) {
    ++immediate_receives_used_;
    // Immediates of a closed connection are not counted.
    if (wc.status == abi::wc_success && (wc.wc_flags & abi::wc_with_imm) != 0 &&
        peers_by_qpn_.find(wc.qp_num) != nullptr) {
      sink_.counted(ntohl(wc.imm_data));
    }
    return;
  }
  if (id == kMessageReceive) {
    const auto slot = static_cast<std::uint32_t>(wc.wr_id & kNumberMask);
    Peer* const* peer = peers_by_qpn_.find(wc.qp_num);
    if (wc.status == abi::wc_success && peer != nullptr && wc.byte_len <= slot_nbytes_) {
      const std::string_view bytes(reinterpret_cast<const char*>(arena_.get() + slot * slot_nbytes_), wc.byte_len);
      on_frame(**peer, FrameKind{ntohl(wc.imm_data)}, bytes);
    }
    used_receive_slots_.push_back(slot);
    return;
  }
  const auto* found = queues_.find(id);
  if (found == nullptr) return;  // of a destroyed QP
  const auto [peer, queue] = *found;
  const std::uint64_t number = queue->tail + ((wc.wr_id - queue->tail) & kNumberMask);
  if (number >= queue->head) return;  // already retired; a correct provider never reports this
  if (wc.status == abi::wc_success) {
    retire(*peer, *queue, number, kDone, true);
  } else {
    const Outcome failure = describe_error(*peer, wc);
    // A flushed request proves nothing about those before it.
    const bool first = wc.status != abi::wc_flush_err && !queue->failed;
    queue->failed = true;
    retire(*peer, *queue, number, failure, first);
    fail_connection(*peer, failure);
  }
}

// A completion retires its request and all earlier ones in posting order. Those before the first failure have
// succeeded, unless a later request was to confirm them.
void VerbsDomain::retire(Peer& peer, Queue& queue, std::uint64_t number, const Outcome& outcome,
                         bool confirms_earlier) {
  Flow* flow = nullptr;
  std::uint32_t reported = 0;
  const auto report = [&] {
    if (reported != 0) sink_.stopped(*flow, reported, kDone);
    reported = 0;
  };
  while (queue.tail <= number) {
    const Request& request = queue.at(queue.tail++);
    const bool good = outcome.ok() || (confirms_earlier && request.confirmed_by < number);
    ++free_cq_entries_;
    ++peer.retired;
    // The slot is free now, and reporting may post again and reuse it: copy what is needed first.
    if (good && request.kind == Request::Kind::piece) {
      Flow* const piece_flow = request.flow;
      peer.nbytes -= request.nbytes;
      if (piece_flow != flow) report();  // adjacent pieces of one flow are reported in one call
      flow = piece_flow;
      ++reported;
      continue;
    }
    const Request ended = request;
    report();
    finish(peer, ended, good ? kDone : outcome);
  }
  report();
  if (!peer.revocations.empty()) acknowledge_revocations(peer);
}

void VerbsDomain::finish(Peer& peer, const Request& request, const Outcome& outcome) {
  switch (request.kind) {
    case Request::Kind::piece:
      peer.nbytes -= request.nbytes;
      sink_.stopped(*request.flow, 1, outcome);
      return;
    case Request::Kind::flush:
      return;
    case Request::Kind::control:
    case Request::Kind::message:
      if (request.slot != kNoSlot) free_slots_.push_back(request.slot);
      if (request.kind == Request::Kind::control) return;
      --peer.held_slots;
      sink_.sent(request.message, outcome);
      return;
  }
}

// The QP is destroyed: whatever had not completed ends as lost.
void VerbsDomain::fail_remaining(Peer& peer, Queue& queue) {
  while (queue.tail < queue.head) {
    const Request request = queue.at(queue.tail);
    ++queue.tail;
    ++free_cq_entries_;
    finish(peer, request, kConnectionClosed);
  }
}

Outcome VerbsDomain::describe_error(const Peer& peer, const abi::Wc& wc) const {
  if (!peer.failure.ok()) return peer.failure;  // a consequence of an earlier failure
  const auto code = static_cast<std::int64_t>(wc.status);
  std::string reason = std::string(library_.wc_status_str(wc.status)) + " (" + std::to_string(wc.status);
  if (wc.vendor_err != 0) reason += ", vendor error " + std::to_string(wc.vendor_err);
  reason += ")";
  if (port_down_since_) reason += "; port " + port_.name + " is down";
  switch (wc.status) {
    case abi::wc_rem_access_err:
      return {Status::stale_region, code, reason + ": the peer has deregistered the region"};
    case abi::wc_flush_err:  // the device failed the QP before it reported the cause
      return {Status::peer_lost, code, reason + ": the connection has failed"};
    case abi::wc_retry_exc_err:
      return {Status::peer_lost, code, reason + ": no response from the peer on " + port_.name};
    case abi::wc_rnr_retry_exc_err:
      return {Status::provider, code, reason + ": the peer posts no receives: its engine is not running"};
    default:
      return {Status::provider, code, reason};
  }
}

// ---------------------------------------------------------------------------------------------------------- receives

void VerbsDomain::post_immediate_receives(std::uint32_t count) {
  std::array<abi::RecvWr, kMaxReceiveChain> requests;
  while (count > 0) {
    const std::uint32_t length = std::min(count, kMaxReceiveChain);
    for (std::uint32_t i = 0; i < length; ++i) {
      requests[i] = {make_wr_id(kImmediateReceive, 0), i + 1 < length ? &requests[i + 1] : nullptr, nullptr, 0};
    }
    abi::RecvWr* bad = nullptr;
    const int result = abi::post_srq_recv(immediate_receives_.get(), requests.data(), &bad);
    const std::uint32_t accepted = result == 0      ? length
                                   : bad == nullptr ? 0
                                                    : static_cast<std::uint32_t>(bad - requests.data());
    count -= accepted;
    if (result != 0) break;
  }
  immediate_receives_used_ = count;  // tried again with the next arrival
}

void VerbsDomain::post_message_receives() {
  while (!used_receive_slots_.empty()) {
    const std::uint32_t slot = used_receive_slots_.back();
    abi::Sge memory{reinterpret_cast<std::uint64_t>(arena_.get() + slot * slot_nbytes_),
                    static_cast<std::uint32_t>(slot_nbytes_), arena_registration_->lkey};
    abi::RecvWr request{make_wr_id(kMessageReceive, slot), nullptr, &memory, 1};
    abi::RecvWr* bad = nullptr;
    if (abi::post_srq_recv(message_receives_.get(), &request, &bad) != 0) return;
    used_receive_slots_.pop_back();
  }
}

// ----------------------------------------------------------------------------------------------------- events, timers

// Checks asynchronous events and deadlines. Returns whether anything happened.
bool VerbsDomain::check_events() {
  bool moved = poll_events();
  if (timer_due_ && Clock::now() >= *timer_due_) {
    std::uint64_t expirations = 0;
    [[maybe_unused]] const auto got = ::read(timer_.get(), &expirations, sizeof expirations);
    timer_due_.reset();
    moved |= on_timer(Clock::now());
  }
  start_timer_if_needed();  // after on_timer(), which may leave deadlines
  return moved;
}

// Without a timer nothing would wake an idle worker for a deadline.
void VerbsDomain::start_timer_if_needed() {
  if (!timer_due_ && has_deadlines()) start_timer();
}

void VerbsDomain::start_timer() {
  if (timer_due_) return;
  timer_due_ = Clock::now() + kTimerPeriod;
  const itimerspec when{{}, as_timespec(kTimerPeriod)};
  ::timerfd_settime(timer_.get(), 0, &when, nullptr);
}

// Whether anything can end by timeout. An idle engine has no timer.
bool VerbsDomain::has_deadlines() const noexcept {
  if (!deregistering_.empty() || port_down_since_ || !blocked_outboxes_.empty()) return true;
  for (const auto& [number, peer] : peers_) {
    if (peer->data.in_flight() + peer->messages.in_flight() != 0) return true;
  }
  return false;
}

bool VerbsDomain::on_timer(Clock::time_point now) {
  bool moved = finish_deregistrations();
  flush_outboxes();
  if (port_down_since_ && now - *port_down_since_ > settings_.port_down) {
    fail_all_connections({Status::peer_lost, abi::event_port_err, "port " + port_.name + " is down"});
    port_down_since_.reset();  // a new connection will find out by itself
    moved = true;
  }
  for (auto& [number, peer] : peers_) {
    const bool is_still =
        peer->retired == peer->retired_at_last_tick && peer->data.in_flight() + peer->messages.in_flight() != 0;
    peer->retired_at_last_tick = peer->retired;
    if (!is_still || !peer->failure.ok()) {
      peer->stalled_since.reset();
      continue;
    }
    if (!peer->stalled_since) peer->stalled_since = now;
    const Seconds underway(static_cast<double>(peer->nbytes) / kMinBytesPerSecond);
    if (now - *peer->stalled_since < settings_.stall + underway) continue;
    const auto count = peer->data.in_flight() + peer->messages.in_flight();
    fail_connection(
        *peer, {Status::provider, ETIMEDOUT,
                std::to_string(count) + " requests in flight, and none has completed for " +
                    std::to_string(static_cast<int>(settings_.stall.count())) + " s: the peer's engine is frozen"});
    moved = true;
  }
  return moved;
}

bool VerbsDomain::poll_events() {
  bool moved = false;
  abi::AsyncEvent event{};
  while (library_.get_async_event(port_.context.get(), &event) == 0) {
    // Acknowledged at once, since destroying a QP waits for it. The QP pointer is compared, never dereferenced.
    library_.ack_async_event(&event);
    on_event(event);
    moved = true;
  }
  return moved;
}

void VerbsDomain::on_event(const abi::AsyncEvent& event) {
  const auto code = static_cast<std::int64_t>(event.event_type);
  const std::string said =
      std::string(library_.event_type_str(event.event_type)) + " (event " + std::to_string(code) + ")";
  switch (event.event_type) {
    case abi::event_qp_fatal:
    case abi::event_qp_req_err:
    case abi::event_qp_access_err:
      for (auto& [number, peer] : peers_) {
        if (peer->data.qp.get() != event.element.qp && peer->messages.qp.get() != event.element.qp) continue;
        return fail_connection(
            *peer, {Status::provider, code, said + ": the device refused an access of the peer, or a protocol error"});
      }
      return;
    case abi::event_qp_last_wqe_reached:
      for (auto& [number, peer] : peers_) {
        for (Queue* queue : {&peer->data, &peer->messages})
          queue->receives_returned |= queue->qp.get() == event.element.qp;
      }
      return;
    case abi::event_port_err:
      // A short interruption costs nothing: the requests in flight are retransmitted.
      if (event.element.port_num == port_.number && !port_down_since_) port_down_since_ = Clock::now();
      return;
    case abi::event_port_active:
      if (event.element.port_num == port_.number) port_down_since_.reset();
      return;
    case abi::event_cq_err:
    case abi::event_srq_err:
    case abi::event_device_fatal:
      device_failure_ = {Status::provider, code, port_.name + ": " + said};
      fail_all_connections(device_failure_);
      return;
    default:
      return;  // GIDs are read again with the next connection
  }
}

}  // namespace aio::verbs
