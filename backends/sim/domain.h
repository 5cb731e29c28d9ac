// One NIC on the simulated fabric. It keeps the contract, and as little more of it as the adversary can manage.
#pragma once

#include <deque>
#include <map>
#include <tuple>
#include <unordered_map>
#include <vector>

#include "../core/domain.h"
#include "../core/handles.h"
#include "fabric.h"

namespace aio::sim {

class SimDomain final : public Domain {
 public:
  // `doorbell_fd`: on a stepped fabric, what wakes the event loop; else -1.
  SimDomain(Sink& sink, std::shared_ptr<Fabric> fabric, unsigned rail, int doorbell_fd);
  ~SimDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  [[nodiscard]] NodeId node() const noexcept { return node_; }

  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber peer, const std::optional<Endpoint>& remote) override;
  void disconnect(PeerNumber peer, bool lost) override;

  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber peer, TransferId message, const std::string& payload) override;
  bool progress() override;
  [[nodiscard]] bool needs_progress() const noexcept override;
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override;

 private:
  struct Link {
    std::uint64_t mine = 0, theirs = 0;
    NodeId node = 0;    // theirs; 0: not joined
    std::string there;  // empty: on the same fabric object
    std::uint32_t in_flight = 0;
    bool failed = false;
  };
  struct Local {
    std::uint64_t addr, nbytes;
    unsigned access;
    Key key;
  };
  struct Remote {
    PeerNumber peer;
    Key key;
    std::uint64_t nbytes;
  };
  // A piece, or a message, on its way. It has stopped when every packet of it was answered.
  struct Work {
    PeerNumber peer;
    Flow* flow;  // null: a message
    TransferId message;
    std::byte* target;  // of a read
    std::uint64_t nbytes;
    std::uint32_t unanswered;
    Outcome outcome;
  };
  // A piece that is coming in.
  struct Arrival {
    std::uint32_t missing;
    bool refused = false;
  };
  struct Held {  // a count that is due, or a goodbye that waits for those
    std::uint64_t link;
    std::uint32_t immediate;
  };
  struct Parting {
    PeerNumber peer;
    std::uint64_t link;
  };

  void fail(Flow& flow, const Outcome& outcome);
  // Both return in how many packets.
  std::uint32_t write_piece(PeerNumber peer, const Link& link, const Remote* remote, const Piece& piece,
                            std::uint64_t work);
  std::uint32_t read_piece(PeerNumber peer, const Link& link, const Remote& remote, const Piece& piece,
                           std::uint64_t work);
  Packet& queue(Kind kind, PeerNumber peer, const Link& link, std::uint64_t work);
  bool launch_some(std::uint32_t budget);
  void take(Packet packet);
  void take_write(const Packet& packet, PeerNumber peer);
  void take_read(const Packet& packet, PeerNumber peer);
  void answer(const Header& header, PeerNumber peer, Status status);
  Packet* queue_answer(Kind kind, PeerNumber peer, const Header& header);
  void answered(std::uint64_t work, PeerNumber peer, Status status);
  // Bounds, access and being there at all are checked at the owner, for every packet.
  Status reach(const Header& header, unsigned access, std::byte*& at) const;
  void report(const Work& work);
  bool report_some(bool holding);
  void release_held(std::uint64_t link);

  Sink& sink_;
  const std::shared_ptr<Fabric> fabric_;
  DomainAttributes attributes_;
  Fd wake_fd_;
  NodeId node_ = 0;

  std::unordered_map<PeerNumber, Link> links_;
  std::unordered_map<std::uint64_t, PeerNumber> by_link_;
  std::unordered_map<RegionNumber, Local> locals_;
  std::unordered_map<Key, RegionNumber> by_key_;
  std::unordered_map<RegionNumber, Remote> remotes_;
  std::unordered_map<std::uint64_t, Work> works_;
  std::map<std::tuple<std::uint64_t, NodeId, std::uint64_t>, Arrival> arrivals_;  // by link, sender, work
  std::deque<Packet> outbound_;
  std::vector<Work> finished_;  // not yet reported
  std::vector<Held> held_;
  std::vector<Parting> parting_;
  std::vector<RegionNumber> releasing_;
  std::unordered_map<Key, Local> ghosts_;  // deregistered; only the bug `accept_stale` looks here
  std::uint64_t last_work_ = 0;
  bool blocked_ = false;  // all that is outbound waits for a path
  bool stalled_ = false, holding_ = false;
};

}  // namespace aio::sim
