// The wire of the simulated fabric: what is in flight between nodes, and the adversary who decides what moves next.
//
// A node is one NIC of one engine. Everything travels in packets of at most one MTU. A packet leaves its node some time
// after it was posted (only then is the source read), waits at its destination, and is picked from there in any order
// by the destination's own worker. Nothing is duplicated and nothing is lost in silence.
//
// Lock order: a core's lock, then the fabric's. The fabric calls nobody while it holds its own.
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

namespace aio::sim {

// What every fabric's socket is called, followed by whose it is.
inline constexpr std::string_view kAddressPrefix = "aio-transfer-sim-";

using NodeId = std::uint32_t;
using Key = std::uint64_t;

// SplitMix64: one word of state, good enough to be mean with.
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

enum class Kind : std::uint8_t {
  write = 0,
  read = 1,  // asks for bytes
  data = 2,  // brings them
  message = 3,
  ack = 4,
  dropped = 5,  // the rest of a write that fails half-way: carries nothing, and its piece will not count
};

// What travels. Plain, so that it can cross between processes as it is, followed by its payload.
struct Header {
  Kind kind;
  Status status;  // of an ack
  std::uint16_t has_immediate;
  std::uint32_t immediate;  // of the piece, counted when all its packets are in
  NodeId from, to;
  std::uint64_t link;    // the receiver's name for the connection
  std::uint64_t back;    // the sender's
  std::uint64_t work;    // the initiator's name for the piece; echoed
  Key key;               // of the region at the receiver
  std::uint64_t offset;  // in that region; for data: in the piece
  std::uint64_t at;      // of a read: where in the piece the answer goes
  std::uint32_t nbytes;
  std::uint32_t packets;  // of the piece, in all
};
static_assert(sizeof(Header) == 72);

struct Packet {
  Header header{};
  PeerNumber peer = 0;                // to whom, as the sender numbers them
  const std::byte* source = nullptr;  // until it leaves
  std::string payload;
};

struct Faults {
  double reorder = 1.0;  // how likely the next packet is any, and not the oldest
  double eagain = 0.0;   // how likely a post finds no slot
  double failed_posts = 0.0;
  double failed_completions = 0.0;
  double late_completions = 0.25;  // how likely what could be reported now is put off
  std::uint32_t mtu = 8192;
  std::uint64_t max_piece = 0;  // 0: any
  std::uint32_t depth = 256;    // pieces in flight per NIC and peer
  // Deliberate bugs, to prove that the suite sees them.
  bool count_before_payload = false, error_before_stop = false, accept_stale = false, skip_fence = false;
};

// What the user's hook says of a packet that is about to leave.
enum class Verdict : std::uint8_t { deliver = 0, hold = 1, fail = 2 };

class Fabric {
 public:
  // What a NIC is told to do.
  struct Controls {
    bool stalled = false;
    bool full = false;        // EAGAIN for whatever is posted
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

  // Every engine of a process that names no other fabric is on this one, with a worker each.
  static std::shared_ptr<Fabric> common(const std::function<std::shared_ptr<Fabric>()>& make);

  // Its cores have no worker: they move as their events are drained, on the thread of the event loop.
  [[nodiscard]] bool stepped() const noexcept { return stepped_; }
  [[nodiscard]] std::uint64_t id() const noexcept { return id_; }
  [[nodiscard]] const Faults& faults() const noexcept { return faults_; }
  // How peers of other processes reach it; empty where they cannot.
  [[nodiscard]] const std::string& address() const noexcept { return address_; }
  [[nodiscard]] int socket_fd() const noexcept { return socket_.get(); }

  NodeId join(int wake_fd);
  void leave(NodeId node);

  // What a link or a region is called. Across processes none can be guessed from another, as it could be from the dice.
  std::uint64_t name();
  std::uint64_t below(std::uint64_t n);
  bool happens(double probability);

  // -- for a domain's worker --

  // Called with the fabric unlocked: the hook may be Python. A copy of it, since it may put another in its place.
  [[nodiscard]] Verdict route(const Header& header) const {
    const Route route = route_;
    return route ? route(header) : Verdict::deliver;
  }
  // `there`: the fabric's own id, or the address of another process's. False: not now; the packet is as it was.
  bool launch(Packet& packet, const std::string& there, bool& gone);
  // The adversary's choice of what `node` gets next; false: nothing, or not now.
  bool next(NodeId node, Packet& out);
  [[nodiscard]] bool pending(NodeId node);
  [[nodiscard]] Controls controls(NodeId node);
  // Take one of the commanded failures, or roll for one.
  bool fails_post(NodeId node);
  bool fails_completion(NodeId node);
  bool refuses(NodeId node);
  [[nodiscard]] bool open(NodeId from, NodeId to);
  // Take what other processes sent.
  bool receive();

  // -- for whoever controls it --

  void reseed(std::uint64_t seed);  // whatever was commanded is over, too
  void set_route(Route route) { route_ = std::move(route); }
  void set_path(NodeId one, NodeId other, bool open);
  void change(NodeId node, const std::function<void(Controls&)>& edit);
  // As if its process had been killed: whatever it sends or is sent vanishes.
  void kill(NodeId node);
  Totals totals();

 private:
  struct Node {
    std::deque<Packet> inbound;
    int wake_fd = -1;
    Controls controls;
  };

  static void ring(const Node& node) noexcept;
  // How likely a packet of this path is put off when its turn comes: every peer is far in its own way.
  double lag(const Header& header) const noexcept;
  bool launch_abroad(const Packet& packet, const std::string& there, bool& gone);

  const bool stepped_;
  std::uint64_t id_;
  const Faults faults_;
  Route route_;
  std::string address_;
  Fd socket_;

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
