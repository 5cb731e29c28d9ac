// Settings of the emulated devices, from the environment. README.md lists the variables.
#pragma once

#include <cstdint>
#include <string>

namespace efa {

struct Settings {
  unsigned devices = 1;
  bool reads = true, writes = true;
  bool unsolicited = false;  // an immediate consumes no receive
  bool interrupts = true;
  bool copies_on_fork = true;  // the kernel copies registered pages when a process forks
  std::uint64_t seed = 0;
  std::uint32_t mtu = 8192;    // of a packet of a read or a write
  unsigned paths = 8;          // between any two queue pairs
  unsigned window = 64;        // packets in flight to a NIC before the first of them must arrive
  std::uint64_t hold_us = 20;  // how long a single packet waits for others that could overtake it
  std::uint64_t bytes_per_second = 0;
  unsigned send_depth = 4096, receive_depth = 32768;
  double reorder = 1.0;             // probability that the next packet is any, not the oldest
  double late = 0.1;                // probability that the packet picked is put back
  double eagain = 0.0;              // probability that a post finds the queue full
  double failed_posts = 0.0;        // ... that it is refused
  double failed_completions = 0.0;  // ... that it fails half-way
  std::string log;                  // a line for every queue pair that is destroyed
  std::string links;                // a file with one character per device: '0' is a link that is down
  std::uint64_t timeout_ms = 1000;  // timeout of a request without a reply
  bool gives_up = false;            // whether that timeout applies: links may go down, or it was set
  std::string sysfs;

  static const Settings& get();
};

// Random numbers with one word of state; good enough for reordering.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed) {}

  std::uint64_t below(std::uint64_t n) noexcept { return n == 0 ? 0 : roll() % n; }
  bool happens(double probability) noexcept {
    return probability > 0 && static_cast<double>(roll() >> 11) * 0x1p-53 < probability;
  }
  std::uint64_t roll() noexcept {
    // A Weyl sequence through Murmur3's finalizer.
    std::uint64_t word = state_ += 0x9e3779b97f4a7c15ull;
    word = (word ^ word >> 33) * 0xff51afd7ed558ccdull;
    word = (word ^ word >> 33) * 0xc4ceb9fe1a85ec53ull;
    return word ^ word >> 33;
  }

 private:
  std::uint64_t state_;
};

}  // namespace efa
