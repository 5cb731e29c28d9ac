// The simulated fabric: what is in flight between nodes, and the seeded adversary that decides what moves next.
//
// A node is one NIC of one engine. Everything travels in packets of at most one MTU. A packet leaves its node some time
// after it was posted (only then is the source read), waits at its destination, and is taken from there in any order by
// the destination's own worker. No packet is duplicated, and none is lost without an error.
//
// Lock order: a core's lock, then the fabric's. The fabric calls nothing while it holds its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../core/handles.h"
#include "../core/types.h"
#include "wire.h"

namespace aio::sim {

// Pseudo-random numbers from a seed, by SplitMix64: one word of state, and good enough for schedules.
class Dice {
 public:
  explicit Dice(std::uint64_t seed) : state_(seed) {}

  std::uint64_t roll() noexcept {
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t n) noexcept { return n == 0 ? 0 : roll() % n; }
  bool happens(double probability) noexcept { return static_cast<double>(roll() >> 11) * 0x1p-53 < probability; }

 private:
  std::uint64_t state_;
};

// How the fabric misbehaves, within the contract and (the last line) against it.
struct Faults {
  double reorder = 1.0;  // probability that the next packet is a random one, and not the oldest
  double eagain = 0.0;   // probability that a post finds no slot
  double failed_posts = 0.0;
  double failed_completions = 0.0;
  double late_completions = 0.25;  // probability that what could be reported now is deferred
  std::uint32_t mtu = 8192;
  std::uint64_t max_piece = 0;  // 0: any
  std::uint32_t depth = 256;    // pieces in flight per NIC and peer
  // Deliberate bugs, to prove that the tests find them.
  bool count_before_payload = false, error_before_stop = false, accept_stale = false, skip_fence = false;
};

// Decision of the user's hook about a packet that is about to leave.
enum class Verdict : std::uint8_t { deliver = 0, hold = 1, fail = 2 };

class Fabric {
 public:
  // How one NIC behaves now.
  struct Controls {
    bool stalled = false;
    bool full = false;        // every post finds no slot
    bool holding = false;     // completions are not reported
    std::uint32_t speed = 8;  // packets per turn
    std::uint32_t fail_posts = 0, fail_completions = 0;
  };
  struct Totals {
    std::uint64_t delivered, left, dropped, refused_posts, failed, digest, in_flight;
  };
  using Route = std::function<Verdict(const Header&)>;

  Fabric(std::uint64_t seed, const Faults& faults, bool stepped);
  Fabric(const Fabric&) = delete;
  Fabric& operator=(const Fabric&) = delete;
  ~Fabric() = default;

  // Returns the fabric of all engines of this process that name no other, each of which has a worker. Makes it if there
  // is none.
  static std::shared_ptr<Fabric> common(const std::function<std::shared_ptr<Fabric>()>& make);

  // Whether its cores have no worker: they move when their events are drained, on the thread of the event loop.
  [[nodiscard]] bool stepped() const noexcept { return stepped_; }
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] const Faults& faults() const noexcept { return faults_; }
  // The address of its socket for other processes; empty where they cannot reach it.
  [[nodiscard]] const std::string& address() const noexcept { return address_; }
  [[nodiscard]] int socket_fd() const noexcept { return socket_.get(); }

  NodeId add_node(int wake_fd);
  void remove_node(NodeId node);

  // Makes the key of a connection or a region. Across processes none can be guessed from another, as it could be if it
  // came from the dice.
  std::uint64_t make_key();
  std::uint64_t below(std::uint64_t n);
  bool happens(double probability);

  // -- for a domain, on its core's worker --

  // Asks the hook, with the fabric unlocked since the hook may be Python. A copy of it, since it may replace itself.
  [[nodiscard]] Verdict route(const Header& header) const {
    const Route route = route_;
    return route ? route(header) : Verdict::deliver;
  }
  // Sends to the fabric of another process at `address`, or, if that is empty, within this one. Returns false where
  // there is no room now: the packet is as it was. Sets `is_gone` where the destination does not exist any more.
  bool send(Packet& packet, const std::string& address, bool& is_gone);
  // Takes what the adversary has chosen for `node`; false: there is nothing, or not now.
  bool take_next(NodeId node, Packet& out);
  [[nodiscard]] bool has_inbound(NodeId node);
  [[nodiscard]] Controls controls(NodeId node);
  // These use up a failure that was set by Controls, or roll for one.
  bool fails_post(NodeId node);
  bool fails_completion(NodeId node);
  bool refuses_post(NodeId node);
  [[nodiscard]] bool is_path_open(NodeId from, NodeId to);
  // Takes in what other processes have sent. Returns whether there was anything.
  bool receive_datagrams();

  // -- for the test that controls it --

  void reseed(std::uint64_t seed);  // and resets controls and paths
  void set_route(Route route) { route_ = std::move(route); }
  void set_path(NodeId one, NodeId other, bool open);
  void edit_controls(NodeId node, const std::function<void(Controls&)>& edit);
  // As if the node's process had been killed: all that it sends, or that is sent to it, vanishes.
  void kill(NodeId node);
  Totals totals();

 private:
  struct Node {
    std::deque<Packet> inbound;
    int wake_fd = -1;
    Controls controls;
  };

  static void wake(const Node& node) noexcept { signal_eventfd(node.wake_fd); }
  // Probability that a packet of this path is deferred when its turn comes: each path has a delay of its own.
  double lag(const Header& header) const noexcept;
  bool send_to_process(const Packet& packet, const std::string& address, bool& is_gone);

  const bool stepped_;
  std::uint64_t id_;
  const Faults faults_;
  Route route_;
  std::string address_;
  Fd socket_;

  // Guards everything below: workers of all engines on the fabric share it.
  std::mutex mutex_;
  Dice dice_;
  std::uint64_t lags_;
  NodeId last_ = 0;
  std::map<NodeId, Node> nodes_;  // in the order of their numbers, which reseed() needs
  std::set<NodeId> dead_;
  std::set<std::pair<NodeId, NodeId>> cut_;
  Totals totals_{};
  std::vector<char> datagram_;
};

}  // namespace aio::sim
