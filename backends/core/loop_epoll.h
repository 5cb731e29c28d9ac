// Epoll set that an event loop sleeps on: its doorbell and, while the worker sleeps too, the transports' descriptors.
// An arrival then wakes the loop itself, where otherwise it would wake a thread that wakes the loop.
#pragma once

#include <sys/epoll.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <vector>

#include "handles.h"
#include "types.h"

namespace aio {

class LoopEpoll {
 public:
  struct Ready {
    bool doorbell, arrival;
  };

  explicit LoopEpoll(int doorbell_fd) : doorbell_fd_(doorbell_fd), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = doorbell_fd;
    if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, doorbell_fd, &event) != 0) {
      throw Failure(Failure::Kind::provider, "epoll", std::strerror(errno), errno);
    }
  }

  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }

  // Makes each descriptor wake the loop once: if it is readable now, or when it becomes so. Once, since the worker may
  // read it first, and the loop must not wake again and again for what it may not read. With the core's lock held.
  void arm(const std::vector<int>& fds) noexcept {
    for (const int fd : fds) {
      const bool is_known = std::ranges::find(known_, fd) != known_.end();
      epoll_event event{};
      event.events = EPOLLIN | EPOLLONESHOT;
      event.data.fd = fd;
      ::epoll_ctl(epoll_.get(), is_known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
      if (!is_known) known_.push_back(fd);
    }
  }

  // Returns what woke the loop. By the loop.
  [[nodiscard]] Ready poll() const noexcept {
    std::array<epoll_event, 8> events;
    const int n = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
    Ready ready{};
    for (int i = 0; i < n; ++i) {
      (events[static_cast<std::size_t>(i)].data.fd == doorbell_fd_ ? ready.doorbell : ready.arrival) = true;
    }
    return ready;
  }

 private:
  int doorbell_fd_;
  Fd epoll_;
  std::vector<int> known_;  // the domains' descriptors, which stay the same for as long as the domains live
};

}  // namespace aio
