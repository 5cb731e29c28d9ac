// Progress: epoll events, scheduling of streams, timers and deadlines.
#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kEventsPerPass = 64;  // epoll is level-triggered: the rest is reported again
constexpr long kTimerPeriodNs = 20'000'000;

std::string to_string(std::chrono::duration<double> time) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", time.count());
  return text.data();
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ epoll

void TcpDomain::watch(int fd, StreamId id, bool output, bool known) const noexcept {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | (output ? static_cast<std::uint32_t>(EPOLLOUT) : 0);
  event.data.u64 = id;
  ::epoll_ctl(epoll_.get(), known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
}

// Shuts the connection down explicitly. A forked child may hold the descriptor too; close() alone would then neither
// end the connection nor remove it from the epoll set, which would report it for ever.
void TcpDomain::close_socket(Fd& fd) const noexcept {
  if (!fd) return;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd.get(), nullptr);
  ::shutdown(fd.get(), SHUT_RDWR);
  fd.reset();
}

std::optional<std::vector<int>> TcpDomain::arm() {
  if (!runnable_.empty()) return std::nullopt;
  return std::vector<int>{epoll_.get()};
}

bool TcpDomain::progress() {
  std::array<epoll_event, kEventsPerPass> events;
  const int ready = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  if (ready <= 0 && runnable_.empty()) return false;
  now_ = Clock::now();
  for (int i = 0; i < ready; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    on_ready(event.events, event.data.u64);
  }
  run_scheduled();
  if (disconnecting_ != 0) fence_disconnected();
  return true;
}

void TcpDomain::on_ready(std::uint32_t events, StreamId id) {
  if (id == kListener) return accept_pending();
  if (id == kTimer) return on_timer();
  const auto found = streams_.find(id);
  if (found == streams_.end()) {
    const auto pending = std::ranges::find(pending_, id, &PendingConnection::id);
    if (pending != pending_.end()) read_hello(*pending);
    return;
  }
  Stream& stream = *found->second;
  if (stream.state == Stream::State::connecting) return send_hello(stream);
  if (stream.state == Stream::State::handshaking) return read_welcome(stream);
  if (stream.connected() && stream.blocked && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0) {
    stream.blocked = false;
    watch(stream.fd.get(), stream.id, false, true);
    schedule(stream);
  }
  if (stream.connected() && (events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) receive(stream);
  if (stream.connected() && !stream.blocked && stream.has_output()) schedule(stream);
}

// Puts a stream with output on the list of the next pass.
void TcpDomain::schedule(Stream& stream) {
  if (stream.scheduled) return;
  stream.scheduled = true;
  runnable_.push_back(stream.id);
}

bool TcpDomain::run_scheduled() {
  std::vector<StreamId> scheduled;
  scheduled.swap(runnable_);
  bool moved = false;
  for (const StreamId id : scheduled) {
    const auto found = streams_.find(id);
    if (found == streams_.end()) continue;
    Stream& stream = *found->second;
    stream.scheduled = false;
    moved |= send_frames(stream);
    if (stream.connected() && !stream.blocked && stream.has_output()) schedule(stream);
  }
  return moved;
}

// ----------------------------------------------------------------------------------------------------------- timers

// Deadlines are checked every 20 ms while there are any, and never otherwise: an idle engine is not woken.
void TcpDomain::start_timer() noexcept {
  if (timer_running_) return;
  timer_running_ = true;
  const itimerspec soon{{0, 0}, {0, kTimerPeriodNs}};
  ::timerfd_settime(timer_.get(), 0, &soon, nullptr);
}

void TcpDomain::on_timer() {
  std::uint64_t expirations = 0;
  [[maybe_unused]] const auto got = ::read(timer_.get(), &expirations, sizeof expirations);
  timer_running_ = false;
  if (accept_paused_) {
    accept_paused_ = false;
    watch(listener_.get(), kListener, false, false);
  }
  reject_expired();
  for (auto& [number, peer] : peers_) {
    for (auto& stream : peer->streams) check_deadline(*stream);
  }
  if (has_deadlines()) start_timer();
}

void TcpDomain::check_deadline(Stream& stream) {
  if (stream.peer->disconnecting) return;
  if (stream.state == Stream::State::closed) return report_failure(stream);
  const std::chrono::duration<double> waited = now_ - stream.last_progress;
  if (stream.connected()) {
    if (!stream.awaits_peer() || waited < settings_.post_deadline) return;
    return fail(stream, {Status::provider, ETIMEDOUT,
                         "no byte has moved for " + to_string(waited) +
                             " with operations in flight: the peer is frozen, or no packet reaches it"});
  }
  if (waited >= settings_.connect) {
    return fail(stream, {Status::provider, ETIMEDOUT,
                         "no connection to " + to_string(stream.address) + " within " + to_string(waited) +
                             ": a firewall may block it"});
  }
  if (stream.dials && !stream.fd && now_ >= stream.redial_at) dial(stream);
}

bool TcpDomain::has_deadlines() const noexcept {
  if (accept_paused_ || !pending_.empty() || disconnecting_ != 0) return true;
  return std::ranges::any_of(streams_, [](const auto& entry) {
    const Stream& stream = *entry.second;
    return stream.state == Stream::State::closed ? !stream.deferred_failure.ok()
                                                 : !stream.connected() || stream.awaits_peer();
  });
}

}  // namespace aio::tcp
