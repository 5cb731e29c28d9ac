// What an event loop sleeps on: its doorbell, and, for as long as the worker sleeps too, the transports' descriptors.
// An arrival then wakes the loop itself, where otherwise it wakes a thread that wakes the loop.
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

class LoopWatch {
 public:
  struct Told {
    bool doorbell, arrival;
  };

  explicit LoopWatch(int doorbell) : doorbell_(doorbell), epoll_(::epoll_create1(EPOLL_CLOEXEC)) {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = doorbell;
    if (!epoll_ || ::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, doorbell, &event) != 0) {
      throw Failure(Failure::Kind::provider, "epoll", std::strerror(errno), errno);
    }
  }

  [[nodiscard]] int fd() const noexcept { return epoll_.get(); }

  // Each of them tells once of what comes, or is there already. With the core's lock held.
  void arm(const std::vector<int>& fds) noexcept {
    for (const int fd : fds) {
      const bool known = std::ranges::find(known_, fd) != known_.end();
      epoll_event event{};
      event.events = EPOLLIN | EPOLLONESHOT;
      event.data.fd = fd;
      ::epoll_ctl(epoll_.get(), known ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, &event);
      if (!known) known_.push_back(fd);
    }
  }

  // What the loop was woken for. By the loop.
  [[nodiscard]] Told take() const noexcept {
    std::array<epoll_event, 8> events;
    const int ready = ::epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), 0);
    Told told{};
    for (int i = 0; i < ready; ++i) {
      (events[static_cast<std::size_t>(i)].data.fd == doorbell_ ? told.doorbell : told.arrival) = true;
    }
    return told;
  }

 private:
  int doorbell_;
  Fd epoll_;
  std::vector<int> known_;  // the domains', which stay the same for as long as they live
};

}  // namespace aio
