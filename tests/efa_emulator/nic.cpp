#include "nic.h"

#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "queue_pair.h"

namespace efa {

namespace {

constexpr std::size_t kMostInAir = 512;
constexpr int kBatch = 64;  // packets per pass, so that polling threads get the lock in between
constexpr auto kLookEvery = std::chrono::milliseconds(20);
constexpr auto kNap = std::chrono::microseconds(20);
// How far a NIC may send ahead of its link's rate: its thread may be late by as much without losing throughput.
constexpr auto kBurst = std::chrono::milliseconds(5);

}  // namespace

Nic::Nic(std::uint16_t number)
    : device(number),
      memory(Settings::get().seed * 7919 + number),
      dice(Settings::get().seed * 104729 + number),
      settings_(Settings::get()),
      epoll_fd_(::epoll_create1(EPOLL_CLOEXEC)),
      doorbell_fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      datagram_(kMostDatagram) {
  epoll_event event{EPOLLIN, {}};
  event.data.u64 = 0;  // not the number of any queue pair
  ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, doorbell_fd_, &event);
}

Nic::~Nic() {
  {
    const std::lock_guard lock(mutex);
    stopping_ = true;
    wake();
  }
  if (thread_.joinable()) thread_.join();
  ::close(doorbell_fd_);
  ::close(epoll_fd_);
}

void Nic::join(QueuePair* queue_pair) {
  queue_pairs_.emplace(queue_pair->port().queue_pair, queue_pair);
  for (const int fd : queue_pair->sockets()) {
    epoll_event event{EPOLLIN, {}};
    event.data.u64 = static_cast<std::uint64_t>(fd) << 16 | queue_pair->port().queue_pair;
    ::epoll_ctl(epoll_fd_, EPOLL_CTL_ADD, fd, &event);
  }
  // Started on first use: a process that only lists devices gets no thread.
  if (!thread_.joinable()) thread_ = std::thread(&Nic::run, this);
}

void Nic::leave(QueuePair* queue_pair) {
  queue_pairs_.erase(queue_pair->port().queue_pair);
  for (const int fd : queue_pair->sockets()) ::epoll_ctl(epoll_fd_, EPOLL_CTL_DEL, fd, nullptr);
  std::erase_if(air_, [queue_pair](const Packet& packet) { return packet.header.to == queue_pair->port(); });
}

// With the lock, which the thread held when it decided to sleep: no wake-up is missed.
void Nic::wake() {
  if (!asleep_) return;
  asleep_ = false;
  const std::uint64_t one = 1;
  if (::write(doorbell_fd_, &one, sizeof one) != sizeof one && errno != EAGAIN) std::abort();
}

bool Nic::may_launch(Clock::time_point now) const noexcept {
  return settings_.bytes_per_second == 0 || link_free_ <= now + kBurst;
}

void Nic::launched(std::size_t nbytes, Clock::time_point now) noexcept {
  if (settings_.bytes_per_second == 0) return;
  const auto time = static_cast<double>(nbytes) / static_cast<double>(settings_.bytes_per_second);
  link_free_ = std::max(link_free_, now) + std::chrono::nanoseconds(static_cast<std::int64_t>(time * 1e9));
}

void Nic::run() {
  ::prctl(PR_SET_NAME, "efa-nic");
  ::prctl(PR_SET_TIMERSLACK, 1000);  // sleeps are a few microseconds
  std::unique_lock lock(mutex);
  while (!stopping_) {
    const auto now = Clock::now();
    blocked_ = false;
    bool moved = receive(now);
    moved |= deliver(now);
    moved |= launch(now);
    if (now - looked_ > kLookEvery) {
      looked_ = now;
      look_after(now);
    }
    std::chrono::nanoseconds nap{0};
    if (!moved) {
      const bool waits = std::ranges::any_of(queue_pairs_, [](const auto& entry) { return entry.second->waits(); });
      if (blocked_ || !air_.empty()) {
        nap = kNap;
      } else {
        nap = waits || settings_.gives_up ? std::chrono::nanoseconds(kLookEvery) : std::chrono::hours(1);
      }
      asleep_ = true;
    }
    lock.unlock();
    // Without a pause no other thread gets a lock that is released and taken again at once.
    if (moved) {
      std::this_thread::yield();
    } else {
      sleep(nap);
    }
    lock.lock();
    asleep_ = false;
  }
}

void Nic::sleep(std::chrono::nanoseconds most) {
  pollfd ready{epoll_fd_, POLLIN, 0};
  const timespec time{most.count() / 1'000'000'000, most.count() % 1'000'000'000};
  // With too many packets in flight the sockets stay readable: do not wait for them then.
  ::ppoll(&ready, air_.size() < kMostInAir ? 1 : 0, &time, nullptr);
  std::uint64_t rings = 0;
  if (::read(doorbell_fd_, &rings, sizeof rings) < 0 && errno != EAGAIN) std::abort();
}

bool Nic::receive(Clock::time_point now) {
  epoll_event ready[kBatch];
  const int count = air_.size() < kMostInAir ? ::epoll_wait(epoll_fd_, ready, kBatch, 0) : 0;
  bool any = false;
  for (int i = 0; i < count; ++i) {
    // The upper half is the socket's number; the queue pair may be gone by now.
    const std::uint64_t which = ready[i].data.u64;
    const auto found = queue_pairs_.find(static_cast<std::uint16_t>(which));
    if (found != queue_pairs_.end()) any |= receive(*found->second, static_cast<int>(which >> 16), now);
  }
  return any;
}

bool Nic::receive(const QueuePair& queue_pair, int socket, Clock::time_point now) {
  bool any = false;
  while (air_.size() < kMostInAir) {
    const ssize_t got = ::recv(socket, datagram_.data(), datagram_.size(), MSG_DONTWAIT);
    if (got < 0) break;
    const auto nbytes = static_cast<std::size_t>(got);
    any = true;
    Packet packet{};
    if (nbytes < sizeof packet.header) continue;
    std::memcpy(&packet.header, datagram_.data(), sizeof packet.header);
    const Header& header = packet.header;
    if (header.magic != Header::kMagic || header.to != queue_pair.port() || header.kind == Kind::probe) continue;
    const bool carries = header.kind != Kind::answer && header.kind != Kind::read;
    if (nbytes - sizeof header != (carries ? header.nbytes : 0)) continue;
    // A link that is down loses what arrives; it is never sent again.
    if (!link_up(device) || !link_up(header.from.device)) continue;
    packet.payload.assign(datagram_.data() + sizeof header, datagram_.data() + nbytes);
    packet.at = newest_ = now;
    air_.push_back(std::move(packet));
  }
  return any;
}

// The next packet comes from a random path; packets of one path stay in order, as in a network.
std::size_t Nic::pick() {
  if (!dice.happens(settings_.reorder)) return 0;
  const auto chosen = air_[dice.below(air_.size())].header.path;
  const auto first =
      std::ranges::find_if(air_, [chosen](const Packet& packet) { return packet.header.path == chosen; });
  return static_cast<std::size_t>(first - air_.begin());
}

bool Nic::deliver(Clock::time_point now) {
  const auto hold = std::chrono::microseconds(settings_.hold_us);
  bool any = false;
  for (int i = 0; i < kBatch && !air_.empty(); ++i) {
    // A single packet waits for others that could overtake it, but not for ever while others keep arriving.
    const bool full = air_.size() >= settings_.window;
    if (!full && now - newest_ < hold && now - air_.front().at < 10 * hold) break;
    const std::size_t index = pick();
    if (dice.happens(settings_.late)) continue;
    Packet packet = std::move(air_[index]);
    air_.erase(air_.begin() + static_cast<std::ptrdiff_t>(index));
    any = true;
    const auto found = queue_pairs_.find(packet.header.to.queue_pair);
    if (found != queue_pairs_.end()) found->second->arrived(packet);
  }
  return any;
}

bool Nic::launch(Clock::time_point now) {
  bool any = false;
  for (auto& [number, queue_pair] : queue_pairs_) any |= queue_pair->launch(now, blocked_);
  return any;
}

void Nic::look_after(Clock::time_point now) {
  if (!settings_.links.empty()) watch_links();
  for (auto& [number, queue_pair] : queue_pairs_) queue_pair->look_after(now);
}

void Nic::watch_links() {
  std::ifstream file(settings_.links);
  std::string states;
  file >> states;
  down_.clear();
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (states[i] == '0') down_.insert(static_cast<std::uint16_t>(i));
  }
  std::erase_if(air_, [this](const Packet& packet) { return !link_up(device) || !link_up(packet.header.from.device); });
}

}  // namespace efa
