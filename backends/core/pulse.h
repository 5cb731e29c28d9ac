// Liveness: a byte now and then on a socket of its own, sent and answered by a native thread, so that a busy Python
// loop is not taken for a dead peer and a frozen process is noticed by everybody else.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "handles.h"
#include "types.h"

namespace aio {

enum class Loss : std::uint8_t { reset = 1, silent = 2, declared = 3 };

class Pulse {
 public:
  using Clock = std::chrono::steady_clock;

  Pulse(std::chrono::milliseconds interval, std::chrono::milliseconds timeout);
  ~Pulse();

  // Takes the socket over. Both ends then send a byte every interval.
  void add(PeerNumber peer, int socket);
  // Says why we stop (a goodbye, or that we hold the peer for lost), and closes.
  void remove(PeerNumber peer, bool lost) noexcept;
  [[nodiscard]] int fileno() const noexcept { return events_fd_.get(); }
  // Peers lost since the last call; each is reported once.
  std::vector<std::pair<PeerNumber, Loss>> drain();
  [[nodiscard]] std::size_t size();

 private:
  struct Beat {
    Fd socket;
    Clock::time_point seen;
    bool over = false;  // reported, or it said goodbye
  };

  void run() noexcept;
  void beat(Clock::time_point now, bool stalled);
  void hear(PeerNumber peer, Clock::time_point now);
  void report(PeerNumber peer, Beat& beat, Loss loss);

  const std::chrono::milliseconds interval_;
  const std::chrono::milliseconds timeout_;
  Fd epoll_;
  Fd wake_fd_;
  Fd events_fd_;
  std::mutex mutex_;
  std::unordered_map<PeerNumber, Beat> beats_;
  std::vector<std::pair<PeerNumber, Loss>> lost_;
  std::atomic<bool> stop_{false};
  const int pid_;
  std::thread thread_;
};

}  // namespace aio
