// The sim Domain: one NIC on the simulated fabric. It keeps the contract, and no more of it than the fabric's dice
// allow. Its methods are spread over domain.cpp (opening, attributes), memory.cpp (regions), connection.cpp (peers),
// post.cpp (what the core posts), send.cpp and receive.cpp (packets) and progress.cpp (completions, counts, fences).
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "../core/domain.h"
#include "../core/handles.h"
#include "connection.h"
#include "fabric.h"
#include "memory.h"

namespace aio::sim {

class SimDomain final : public Domain {
 public:
  // `doorbell_fd`: on a stepped fabric, what wakes the event loop.
  SimDomain(Sink& sink, std::shared_ptr<Fabric> fabric, unsigned rail, int doorbell_fd);
  ~SimDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  [[nodiscard]] NodeId node() const noexcept { return node_; }

  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber number, const std::optional<Endpoint>& remote) override;
  void disconnect(PeerNumber number, bool lost) override;

  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber number, TransferId message, const std::string& payload) override;
  bool progress() override;
  [[nodiscard]] bool needs_progress() const noexcept override;
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override;

 private:
  // memory.cpp
  // Bounds and access are checked at the owner, for every packet. Sets `at` to where it may read or write.
  Status check_access(const Header& header, unsigned access, std::byte*& at) const;

  // connection.cpp
  void join(Peer& peer, const Endpoint& remote) const;
  [[nodiscard]] std::vector<Operation> take_operations(PeerNumber number);

  // post.cpp
  void fail_next(Flow& flow, const Outcome& outcome);
  void post_piece(Flow& flow, Peer& peer, const RemoteRegion* remote, const Piece& piece);
  // Queue copies of `blank`, filled in. Both return in how many packets.
  std::uint32_t queue_write(const Packet& blank, const RemoteRegion* remote, const Piece& piece);
  std::uint32_t queue_read(const Packet& blank, const RemoteRegion& remote, const Piece& piece);
  [[nodiscard]] Packet make_packet(Kind kind, PeerNumber number, const Peer& peer, std::uint64_t operation) const;
  Packet& queue(Packet packet);

  // send.cpp
  struct Turn;
  bool send_some(std::uint32_t budget);
  bool send_packet(Packet& packet, Turn& turn);
  static void read_source(Packet& packet);

  // receive.cpp
  void on_packet(Packet packet);
  void on_write(const Packet& packet, PeerNumber number);
  void on_read(const Packet& packet, PeerNumber number);
  void on_data(const Packet& packet, PeerNumber number);
  void on_answer(std::uint64_t operation, PeerNumber number, Status status);
  void answer(const Header& header, PeerNumber number, Status status);
  Packet* queue_answer(Kind kind, PeerNumber number, const Header& header);

  // progress.cpp
  void report(const Operation& operation);
  bool report_some(bool holding);
  void report_counts(std::uint64_t link);

  Sink& sink_;
  const std::shared_ptr<Fabric> fabric_;
  DomainAttributes attributes_;
  Fd wake_fd_;
  NodeId node_ = 0;

  std::unordered_map<PeerNumber, Peer> peers_;
  std::unordered_map<std::uint64_t, PeerNumber> by_link_;
  std::unordered_map<RegionNumber, LocalRegion> local_regions_;
  std::unordered_map<Key, RegionNumber> by_key_;
  std::unordered_map<RegionNumber, RemoteRegion> remote_regions_;
  std::unordered_map<std::uint64_t, Operation> operations_;
  std::map<std::tuple<std::uint64_t, NodeId, std::uint64_t>, Arrival> arrivals_;  // by link, sender, operation
  std::deque<Packet> outbound_;
  std::vector<Operation> finished_;  // and not reported yet
  std::vector<PendingCount> counts_;
  std::vector<PendingFence> fences_;
  std::vector<RegionNumber> releases_;
  std::unordered_map<Key, LocalRegion> deregistered_;  // for the deliberate bug `accept_stale`
  std::uint64_t last_operation_ = 0;
  bool blocked_ = false;  // all that is outbound waits for a path
  bool stalled_ = false, holding_ = false;
};

}  // namespace aio::sim
