#include "heartbeat.h"

#include <pthread.h>
#include <sys/epoll.h>
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

void send_byte(int socket, char byte) noexcept {
  // MSG_DONTWAIT: the buffer is full where the peer is frozen, and one byte more would change nothing.
  ::send(socket, &byte, 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

}  // namespace

Heartbeat::Heartbeat(std::chrono::milliseconds interval, std::chrono::milliseconds timeout)
    : interval_(interval),
      timeout_(timeout),
      epoll_(::epoll_create1(EPOLL_CLOEXEC)),
      wake_fd_(make_eventfd()),
      events_fd_(make_eventfd()),
      pid_(::getpid()) {
  if (!epoll_) throw Failure(Failure::Kind::provider, "epoll_create1", std::strerror(errno), errno);
  epoll_event event{EPOLLIN, {.u64 = kWake}};
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_fd_.get(), &event);
  thread_ = std::thread([this] { run(); });
}

Heartbeat::~Heartbeat() {
  if (::getpid() != pid_) {  // a forked child: thread and peers stayed with the parent, which alone may send goodbyes
    thread_.detach();
    return;
  }
  stop_.store(true, std::memory_order_relaxed);  // the write to the eventfd orders it
  signal_eventfd(wake_fd_.get());
  thread_.join();
}

void Heartbeat::add(PeerNumber peer, int socket) {
  Fd owned(socket);
  const std::lock_guard lock(mutex_);
  epoll_event event{EPOLLIN | EPOLLRDHUP, {.u64 = peer}};
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, socket, &event) != 0) {
    throw Failure(Failure::Kind::provider, "epoll_ctl", std::strerror(errno), errno);
  }
  peers_.insert_or_assign(peer, Peer{std::move(owned), Clock::now()});
  if (peers_.size() == 1) signal_eventfd(wake_fd_.get());  // the thread sleeps without a timeout while it has no peer
}

void Heartbeat::remove(PeerNumber peer, bool lost) noexcept {
  const std::lock_guard lock(mutex_);
  const auto found = peers_.find(peer);
  if (found == peers_.end()) return;
  send_byte(found->second.socket.get(), lost ? kDeclaredLost : kGoodbye);
  peers_.erase(found);  // closing removes it from the epoll set
}

std::vector<std::pair<PeerNumber, Loss>> Heartbeat::drain() {
  clear_eventfd(events_fd_.get());
  const std::lock_guard lock(mutex_);
  return std::exchange(lost_, {});
}

std::size_t Heartbeat::size() {
  const std::lock_guard lock(mutex_);
  return peers_.size();
}

void Heartbeat::report(PeerNumber number, Peer& peer, Loss loss) {
  if (peer.ended) return;
  peer.ended = true;
  ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, peer.socket.get(), nullptr);
  lost_.emplace_back(number, loss);
  signal_eventfd(events_fd_.get());
}

void Heartbeat::receive(PeerNumber number, Clock::time_point now) {
  const auto found = peers_.find(number);
  if (found == peers_.end()) return;
  Peer& peer = found->second;
  std::array<char, 256> bytes;
  for (;;) {
    const ssize_t n = ::recv(peer.socket.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return report(number, peer, Loss::reset);
    peer.last_seen = now;
    for (ssize_t i = 0; i < n; ++i) {
      if (bytes[static_cast<std::size_t>(i)] == kDeclaredLost) return report(number, peer, Loss::declared);
      if (bytes[static_cast<std::size_t>(i)] == kGoodbye) {
        peer.ended = true;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, peer.socket.get(), nullptr);
        return;
      }
    }
  }
}

// `stalled`: this thread itself has not run for longer than the timeout.
void Heartbeat::check_peers(Clock::time_point now, bool stalled) {
  for (auto& [number, peer] : peers_) {
    if (peer.ended) continue;
    send_byte(peer.socket.get(), kBeat);
    // Then every peer looks silent: give each a full timeout from now.
    if (stalled) peer.last_seen = now;
    if (now - peer.last_seen > timeout_) report(number, peer, Loss::silent);
  }
}

void Heartbeat::run() noexcept {
  ::pthread_setname_np(::pthread_self(), "aio-heartbeat");
  std::array<epoll_event, 64> ready;
  auto last = Clock::now();
  auto next = last + interval_;
  bool has_peers = false;
  while (!stop_.load(std::memory_order_relaxed)) {  // checked after every wake-up
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - Clock::now()).count();
    const int wait = !has_peers ? -1 : static_cast<int>(left < 0 ? 0 : left + 1);
    const int n = ::epoll_wait(epoll_.get(), ready.data(), static_cast<int>(ready.size()), wait);
    const auto now = Clock::now();
    const std::lock_guard lock(mutex_);
    // Receive before checking: after a pause of our own, what peers sent meanwhile waits in the sockets.
    for (int i = 0; i < n; ++i) {
      const std::uint64_t id = ready[static_cast<std::size_t>(i)].data.u64;
      if (id != kWake) {
        receive(static_cast<PeerNumber>(id), now);
        continue;
      }
      clear_eventfd(wake_fd_.get());
      last = now;
      next = now;
    }
    has_peers = !peers_.empty();
    if (!has_peers || now < next) continue;
    check_peers(now, now - last > timeout_);
    last = now;
    next = now + interval_;
  }
}

}  // namespace aio
