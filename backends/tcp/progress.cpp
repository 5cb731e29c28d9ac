#include <sys/epoll.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>

#include "domain.h"

namespace aio::tcp {

namespace {

constexpr std::size_t kEvents = 64;  // handled per turn: the others are told again
constexpr long kTickNs = 20'000'000;

std::string words(std::chrono::duration<double> time) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.3g s", time.count());
  return text.data();
}

}  // namespace

// ------------------------------------------------------------------------------------------------------------ turns

void TcpDomain::watch(int fd, StreamId id, bool output, bool known) const noexcept {
  epoll_event event{};
  event.events = EPOLLIN | EPOLLRDHUP | (output ? static_cast<std::uint32_t>(EPOLLOUT) : 0);
  event.data.u64 = id;
  ::epoll_ctl(epoll_.get(), known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
}

// Closes a socket for certain. A forked child may hold it, too, and closing it here would then neither end the
// connection nor take it out of the epoll, which would tell of it for ever.
void TcpDomain::shut(Fd& fd) const noexcept {
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
  std::array<epoll_event, kEvents> events;
  const int ready = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
  if (ready <= 0 && runnable_.empty()) return false;
  now_ = Clock::now();
  for (int i = 0; i < ready; ++i) {
    const epoll_event& event = events[static_cast<std::size_t>(i)];
    ripen(event.events, event.data.u64);
  }
  run_streams();
  if (leaving_ != 0) fence_those_that_left();
  return true;
}

void TcpDomain::ripen(std::uint32_t events, StreamId id) {
  if (id == kListener) return welcome_visitors();
  if (id == kTimer) return tick();
  const auto found = streams_.find(id);
  if (found == streams_.end()) {
    const auto visitor = std::ranges::find(visitors_, id, &Visitor::id);
    if (visitor != visitors_.end()) hear_visitor(*visitor);
    return;
  }
  Stream& stream = *found->second;
  if (stream.state == Stream::State::dialling) return dialled(stream);
  if (stream.state == Stream::State::greeting) return hear_welcome(stream);
  if (stream.up() && stream.blocked && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) != 0) {
    stream.blocked = false;
    watch(stream.fd.get(), stream.id, false, true);
    want(stream);
  }
  if (stream.up() && (events & ~static_cast<std::uint32_t>(EPOLLOUT)) != 0) receive(stream);
  if (stream.up() && !stream.blocked && stream.has_output()) want(stream);
}

// It has something to say.
void TcpDomain::want(Stream& stream) {
  if (stream.listed) return;
  stream.listed = true;
  runnable_.push_back(stream.id);
}

bool TcpDomain::run_streams() {
  std::vector<StreamId> turn;
  turn.swap(runnable_);
  bool moved = false;
  for (const StreamId id : turn) {
    const auto found = streams_.find(id);
    if (found == streams_.end()) continue;
    Stream& stream = *found->second;
    stream.listed = false;
    moved |= pump(stream);
    if (stream.up() && !stream.blocked && stream.has_output()) want(stream);
  }
  return moved;
}

// ------------------------------------------------------------------------------------------------------------- time

// Deadlines are looked at every 20 ms while there are any, and not at all otherwise.
void TcpDomain::want_tick() noexcept {
  if (ticking_) return;
  ticking_ = true;
  const itimerspec soon{{0, 0}, {0, kTickNs}};
  ::timerfd_settime(timer_.get(), 0, &soon, nullptr);
}

void TcpDomain::tick() {
  std::uint64_t expirations = 0;
  [[maybe_unused]] const auto got = ::read(timer_.get(), &expirations, sizeof expirations);
  ticking_ = false;
  if (deaf_) {
    deaf_ = false;
    watch(listener_.get(), kListener, false, false);
  }
  close_door();
  for (auto& [number, link] : links_) {
    for (auto& stream : link->streams) tick(*stream);
  }
  if (has_clocks()) want_tick();
}

void TcpDomain::tick(Stream& stream) {
  if (stream.link->leaving) return;
  if (stream.state == Stream::State::ended) return tell_second_hand(stream);
  const std::chrono::duration<double> waited = now_ - stream.since;
  if (stream.up()) {
    if (!stream.expects() || waited < settings_.post_deadline) return;
    return fail(stream, {Status::provider, ETIMEDOUT,
                         "no byte has moved for " + words(waited) +
                             ", though something is under way: the peer is frozen, or no packet reaches it"});
  }
  if (waited >= settings_.connect) {
    return fail(stream, {Status::provider, ETIMEDOUT,
                         "no connection to " + to_words(stream.address) + " came about for " + words(waited) +
                             ": a firewall may be between"});
  }
  if (stream.dials && !stream.fd && now_ >= stream.redial_at) dial(stream);
}

bool TcpDomain::has_clocks() const noexcept {
  if (deaf_ || !visitors_.empty() || leaving_ != 0) return true;
  return std::ranges::any_of(streams_, [](const auto& entry) {
    const Stream& stream = *entry.second;
    return stream.state == Stream::State::ended ? !stream.verdict.ok() : !stream.up() || stream.expects();
  });
}

}  // namespace aio::tcp
