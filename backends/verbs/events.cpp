// What the device says by itself, and what time brings.
#include <sys/timerfd.h>
#include <unistd.h>

#include <string>

#include "verbs_domain.h"

namespace aio::verbs {

namespace {

constexpr auto kTick = std::chrono::milliseconds(250);
constexpr double kSlowestBytesPerSecond = 10e6;  // what is under way may take this long before it is a stall

timespec as_timespec(std::chrono::nanoseconds time) {
  return {time.count() / 1'000'000'000, time.count() % 1'000'000'000};
}

}  // namespace

// Returns whether anything happened.
bool VerbsDomain::look_around() {
  bool moved = drain_events();
  if (timer_due_ && Clock::now() >= *timer_due_) {
    std::uint64_t expirations = 0;
    [[maybe_unused]] const auto got = ::read(timer_.get(), &expirations, sizeof expirations);
    timer_due_.reset();
    moved |= tick(Clock::now());
  }
  mind_time();  // after the tick, which may leave something to mind
  return moved;
}

// Nobody else would wake an idle worker for it.
void VerbsDomain::mind_time() {
  if (!timer_due_ && minds_time()) keep_time();
}

void VerbsDomain::keep_time() {
  if (timer_due_) return;
  timer_due_ = Clock::now() + kTick;
  const itimerspec when{{}, as_timespec(kTick)};
  ::timerfd_settime(timer_.get(), 0, &when, nullptr);
}

// Whether anything may end because time passes. Nothing is asked of an idle engine.
bool VerbsDomain::minds_time() const noexcept {
  if (!closing_regions_.empty() || port_down_since_ || !outboxes_.empty()) return true;
  for (const auto& [number, peer] : peers_) {
    if (peer->data.in_flight() + peer->frames.in_flight() != 0) return true;
  }
  return false;
}

bool VerbsDomain::tick(Clock::time_point now) {
  bool moved = settle_regions();
  flush_outboxes();
  if (port_down_since_ && now - *port_down_since_ > settings_.port_down) {
    break_all({Status::peer_lost, abi::event_port_err, "port " + port_.name + " is down"});
    port_down_since_.reset();  // a new connection finds out by itself
    moved = true;
  }
  for (auto& [number, peer] : peers_) {
    const bool still = peer->retired == peer->retired_before && peer->data.in_flight() + peer->frames.in_flight() != 0;
    peer->retired_before = peer->retired;
    if (!still || !peer->broken.ok()) {
      peer->still_since.reset();
      continue;
    }
    if (!peer->still_since) peer->still_since = now;
    const Seconds underway(static_cast<double>(peer->nbytes) / kSlowestBytesPerSecond);
    if (now - *peer->still_since < settings_.stall + underway) continue;
    const auto count = peer->data.in_flight() + peer->frames.in_flight();
    break_off(*peer,
              {Status::provider, ETIMEDOUT,
               std::to_string(count) + " requests are under way and none has ended for " +
                   std::to_string(static_cast<int>(settings_.stall.count())) + " s: the peer's engine is frozen"});
    moved = true;
  }
  return moved;
}

bool VerbsDomain::drain_events() {
  bool moved = false;
  abi::AsyncEvent event{};
  while (library_.get_async_event(port_.context.get(), &event) == 0) {
    // Told at once, since destroying a QP waits for it. The QP is compared and never followed.
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
        if (peer->data.qp.get() != event.element.qp && peer->frames.qp.get() != event.element.qp) continue;
        return break_off(*peer,
                         {Status::provider, code, said + ": the peer was refused an access, or broke the protocol"});
      }
      return;
    case abi::event_qp_last_wqe_reached:
      for (auto& [number, peer] : peers_) {
        for (Queue* queue : {&peer->data, &peer->frames}) queue->emptied |= queue->qp.get() == event.element.qp;
      }
      return;
    case abi::event_port_err:
      // A cable that comes back soon costs nothing: the requests under way are tried again meanwhile.
      if (event.element.port_num == port_.number && !port_down_since_) port_down_since_ = Clock::now();
      return;
    case abi::event_port_active:
      if (event.element.port_num == port_.number) port_down_since_.reset();
      return;
    case abi::event_cq_err:
    case abi::event_srq_err:
    case abi::event_device_fatal:
      dead_ = {Status::provider, code, port_.name + ": " + said};
      break_all(dead_);
      return;
    default:
      return;  // addresses that change are read again with the next connection
  }
}

}  // namespace aio::verbs
