#include "pulse.h"

#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace aio {

namespace {

constexpr char kBeat = '.';
constexpr char kGoodbye = 'B';
constexpr char kDeclaredLost = '!';
constexpr std::uint64_t kWake = UINT64_MAX;

Fd checked(int fd, const char* what) {
  if (fd < 0) throw Failure(Failure::Kind::provider, what, std::strerror(errno), errno);
  return Fd(fd);
}

void say(int socket, char byte) noexcept {
  // A full buffer is a frozen peer's: what it did not read in time, it will not miss.
  ::send(socket, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

Pulse::Pulse(std::chrono::milliseconds interval, std::chrono::milliseconds timeout)
    : interval_(interval),
      timeout_(timeout),
      epoll_(checked(::epoll_create1(EPOLL_CLOEXEC), "epoll_create1")),
      wake_fd_(checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      events_fd_(checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd")),
      pid_(::getpid()) {
  epoll_event event{EPOLLIN, {.u64 = kWake}};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_fd_.get(), &event);
  thread_ = std::thread([this] { run(); });
}

Pulse::~Pulse() {
  if (::getpid() != pid_) {  // a forked child: the thread, and the right to say goodbye, stayed with the parent
    thread_.detach();
    return;
  }
  stop_.store(true, std::memory_order_relaxed);
  ring(wake_fd_.get());
  thread_.join();
}

void Pulse::add(PeerNumber peer, int socket) {
  Fd owned(socket);
  const std::lock_guard lock(mutex_);
  epoll_event event{EPOLLIN | EPOLLRDHUP, {.u64 = peer}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket, &event) != 0) {
    throw Failure(Failure::Kind::provider, "epoll_ctl", std::strerror(errno), errno);
  }
  beats_.insert_or_assign(peer, Beat{std::move(owned), Clock::now()});
  if (beats_.size() == 1) ring(wake_fd_.get());  // the thread sleeps without a clock while it has nobody
}

void Pulse::remove(PeerNumber peer, bool lost) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = beats_.find(peer);
  if (found == beats_.end()) return;
  say(found->second.socket.get(), lost ? kDeclaredLost : kGoodbye);
  beats_.erase(found);  // closing takes it out of the epoll set
}

std::vector<std::pair<PeerNumber, Loss>> Pulse::drain() {
  std::uint64_t value = 0;
  [[maybe_unused]] const auto got = ::read(events_fd_.get(), &value, sizeof value);
  const std::lock_guard lock(mutex_);
  return std::exchange(lost_, {});
}

std::size_t Pulse::size() {
  const std::lock_guard lock(mutex_);
  return beats_.size();
}

void Pulse::report(PeerNumber peer, Beat& beat, Loss loss) {
  if (beat.over) return;
  beat.over = true;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, beat.socket.get(), nullptr);
  lost_.emplace_back(peer, loss);
  ring(events_fd_.get());
}

void Pulse::hear(PeerNumber peer, Clock::time_point now) {
  const auto found = beats_.find(peer);
  if (found == beats_.end()) return;
  Beat& beat = found->second;
  std::array<char, 256> bytes;
  for (;;) {
    const ssize_t n = ::recv(beat.socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return report(peer, beat, Loss::reset);
    beat.seen = now;
    for (ssize_t i = 0; i < n; ++i) {
      if (bytes[static_cast<std::size_t>(i)] == kDeclaredLost) return report(peer, beat, Loss::declared);
      if (bytes[static_cast<std::size_t>(i)] == kGoodbye) {
        beat.over = true;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, beat.socket.get(), nullptr);
        return;
      }
    }
  }
}

void Pulse::beat(Clock::time_point now, bool stalled) {
  for (auto& [peer, beat] : beats_) {
    if (beat.over) continue;
    say(beat.socket.get(), kBeat);
    // If it was we who did not run, everybody looks silent: give them a full timeout from now.
    if (stalled) beat.seen = now;
    if (now - beat.seen > timeout_) report(peer, beat, Loss::silent);
  }
}

void Pulse::run() noexcept {
  ::pthread_setname_np(::pthread_self(), "aio-pulse");
  std::array<epoll_event, 64> ready;
  auto last = Clock::now();
  auto next = last + interval_;
  bool alone = true;
  while (!stop_.load(std::memory_order_relaxed)) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - Clock::now()).count();
    const int wait = alone ? -1 : static_cast<int>(left < 0 ? 0 : left + 1);
    const int n = ::epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), wait);
    const auto now = Clock::now();
    const std::lock_guard lock(mutex_);
    // Hear before judging: after a pause of our own, what peers said meanwhile is waiting in the sockets.
    for (int i = 0; i < n; ++i) {
      const std::uint64_t id = ready[static_cast<std::size_t>(i)].data.u64;
      if (id != kWake) {
        hear(static_cast<PeerNumber>(id), now);
        continue;
      }
      std::uint64_t value = 0;
      [[maybe_unused]] const auto got = ::read(wake_fd_.get(), &value, sizeof value);
      last = now;
      next = now;
    }
    alone = beats_.empty();
    if (alone || now < next) continue;
    beat(now, now - last > timeout_);
    last = now;
    next = now + interval_;
  }
}

}  // namespace aio
