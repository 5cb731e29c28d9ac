// One emulated NIC of this process: its objects, and the thread that does the work of the hardware.
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

  // Guards everything of this NIC: regions, queue pairs, completion queues. One lock, since both the polling thread and
  // the NIC's thread access all of them together.
  std::mutex mutex;
  const std::uint16_t device;
  Memory memory;
  Dice dice;
  const QueuePair* last_poster = nullptr;  // for round robin

  // All of the following is called with the lock held.
  void join(QueuePair* queue_pair);
  void leave(QueuePair* queue_pair);
  void wake();
  // Returns false while the link has no room for another packet.
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
  std::vector<Packet> air_;  // packets on their way to this NIC
  Clock::time_point newest_{}, looked_{}, link_free_{};
  std::set<std::uint16_t> down_;
  bool stopping_ = false, asleep_ = false, blocked_ = false;
  int epoll_fd_, doorbell_fd_;
  std::vector<std::byte> datagram_;
  std::thread thread_;
};

Nic& nic_of(abi::Context* context);

}  // namespace efa
