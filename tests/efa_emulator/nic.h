// One emulated NIC of this process: what is registered with it, and the thread that does what the hardware would.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <vector>

#include "abi.h"
#include "memory.h"
#include "settings.h"
#include "wire.h"

namespace efa {

class QueuePair;

using Clock = std::chrono::steady_clock;

// A packet that has left its sender.
struct Packet {
  Header header;
  std::vector<std::byte> payload;
  Clock::time_point at;
};

class Nic {
 public:
  explicit Nic(std::uint16_t device);
  ~Nic();
  Nic(const Nic&) = delete;
  Nic& operator=(const Nic&) = delete;

  // Guards everything of this NIC: regions, queue pairs, completion queues. One lock, since the thread that polls and
  // the one that stands for the hardware touch all of them together.
  std::mutex mutex;
  const std::uint16_t device;
  Memory memory;
  Dice dice;
  const QueuePair* last_poster = nullptr;  // whose turn it was

  // All that follows is called with the lock.
  void join(QueuePair* queue_pair);
  void leave(QueuePair* queue_pair);
  void wake();
  // False: the link has no room for another packet yet.
  [[nodiscard]] bool may_launch(Clock::time_point now) const noexcept;
  void launched(std::size_t nbytes, Clock::time_point now) noexcept;
  [[nodiscard]] bool link_up(std::uint16_t of) const noexcept { return !down_.contains(of); }

 private:
  void run();
  bool receive(Clock::time_point now);
  bool receive(const QueuePair& queue_pair, int socket, Clock::time_point now);
  bool deliver(Clock::time_point now);
  bool launch(Clock::time_point now);
  void look_after(Clock::time_point now);
  void watch_links();
  std::size_t pick();
  void sleep(std::chrono::nanoseconds most);

  const Settings& settings_;
  std::unordered_map<std::uint16_t, QueuePair*> queue_pairs_;
  std::vector<Packet> air_;  // packets that are under way to us
  Clock::time_point newest_{}, looked_{}, link_free_{};
  std::set<std::uint16_t> down_;
  bool stopping_ = false, asleep_ = false, blocked_ = false;
  int epoll_fd_, doorbell_fd_;
  std::vector<std::byte> datagram_;
  std::thread thread_;
};

Nic& nic_of(abi::Context* context);

}  // namespace efa
