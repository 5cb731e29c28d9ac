// Heartbeat: detects lost peers. A native thread exchanges a byte per interval on a socket per peer, so that a busy
// Python loop is not taken for a dead peer, and a frozen process is noticed by its peers.
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

// Why a peer is lost: its socket was reset, it has been silent for too long, or it has declared us lost.
enum class Loss : std::uint8_t { reset = 1, silent = 2, declared = 3 };

class Heartbeat {
 public:
  using Clock = std::chrono::steady_clock;

  Heartbeat(std::chrono::milliseconds interval, std::chrono::milliseconds timeout);
  ~Heartbeat();

  // Takes ownership of the socket. Both ends then send a byte every interval.
  void add(PeerNumber peer, int socket);
  // Sends why it ends (a goodbye, or that we have declared the peer lost), and closes the socket.
  void remove(PeerNumber peer, bool lost) noexcept;
  [[nodiscard]] int fileno() const noexcept { return events_fd_.get(); }
  // Returns peers that were lost since the last call; each is reported once.
  std::vector<std::pair<PeerNumber, Loss>> drain();
  [[nodiscard]] std::size_t size();

 private:
  struct Peer {
    Fd socket;
    Clock::time_point last_seen;
    bool ended = false;  // reported as lost, or it sent a goodbye
  };

  void run() noexcept;
  void check_peers(Clock::time_point now, bool stalled);
  void receive(PeerNumber number, Clock::time_point now);
  void report(PeerNumber number, Peer& peer, Loss loss);

  const std::chrono::milliseconds interval_;
  const std::chrono::milliseconds timeout_;
  Fd epoll_;
  Fd wake_fd_;
  Fd events_fd_;
  std::mutex mutex_;  // the two below, which the thread shares with the event loop
  std::unordered_map<PeerNumber, Peer> peers_;
  std::vector<std::pair<PeerNumber, Loss>> lost_;
  std::atomic<bool> stop_{false};
  const int pid_;
  std::thread thread_;
};

}  // namespace aio
