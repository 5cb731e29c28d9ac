// The verbs Domain. What its files do: domain.cpp opens, closes and arms, memory.cpp registers and revokes, peers.cpp
// connects and fences, data.cpp posts, completions.cpp harvests, frames.cpp carries messages, events.cpp minds what the
// device says and what time brings.
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "../core/domain.h"
#include "../core/handles.h"
#include "../core/recent_map.h"
#include "connection.h"
#include "device.h"
#include "memory.h"

namespace aio::verbs {

using Seconds = std::chrono::duration<double>;

struct Settings {
  std::uint32_t depth, inline_nbytes;
  bool relaxed_ordering;
  std::uint8_t service_level, traffic_class, timeout, retries, rnr_retries;
  Seconds port_down, stall, revoke;
};

class VerbsDomain;

// The ports of one engine, which may stand in for each other. All are driven under one lock.
struct Rails {
  std::vector<VerbsDomain*> domains;
};

class VerbsDomain final : public Domain {
 public:
  VerbsDomain(Sink& sink, const Library& library, Port port, const Settings& settings, std::shared_ptr<Rails> rails);
  ~VerbsDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber peer, const std::optional<Endpoint>& remote) override;
  void disconnect(PeerNumber peer, bool lost) override;
  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber peer, TransferId message, const std::string& payload) override;
  bool progress() override;
  [[nodiscard]] bool needs_progress() const noexcept override { return false; }
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override { return handles_ + remote_regions_.size(); }

 private:
  // domain.cpp
  void open_queues();
  void describe();
  [[nodiscard]] std::byte* scratch() const noexcept { return arena_.get() + 2 * kSlots * slot_nbytes_; }
  [[nodiscard]] std::byte* anchor() const noexcept { return scratch() + kAnchorNbytes; }
  // memory.cpp
  Handle<abi::Mr> register_memory(const LocalMemory& memory, unsigned access, std::uint64_t* count);
  void revoke(LocalRegion& region);
  bool settle_regions();
  // endpoint.cpp
  void write_blob(Peer& peer);
  [[nodiscard]] std::uint8_t reads_in_flight(int offered) const noexcept;
  abi::AhAttr route_to(const EndpointBlob& remote) const;
  // connection.cpp
  Peer* find(PeerNumber number) noexcept;
  Queue open_queue(std::uint32_t depth, std::uint32_t inline_nbytes, abi::Srq* srq);
  void join(Peer& peer, const Endpoint& remote);
  void start_queue(Queue& queue, const abi::AhAttr& route, const EndpointHead& remote, std::uint32_t qpn,
                   std::uint32_t psn, std::uint32_t own_psn);
  void end(Peer& peer);
  void close_queues(Peer& peer);
  void await_receives(const Peer& peer);
  void break_off(Peer& peer, Outcome cause);
  void break_all(const Outcome& cause);
  // post.cpp
  bool read_part(Peer& peer, Flow& flow, const LocalRegion& local, const RemoteRegion& remote);
  bool chain(Peer& peer, Flow& flow, std::uint32_t count, const LocalRegion* local, const RemoteRegion* remote);
  // progress.cpp
  bool harvest();
  void complete(const abi::Wc& wc);
  void retire(Peer& peer, Queue& queue, std::uint64_t number, const Outcome& outcome, bool vouches);
  void finish(Peer& peer, const Request& request, const Outcome& outcome);
  void abandon(Peer& peer, Queue& queue);
  [[nodiscard]] Outcome describe_failure(const Peer& peer, const abi::Wc& wc) const;
  void post_immediates(std::uint32_t count);
  void post_receives();
  // control_messages.cpp
  bool post_frame(Peer& peer, FrameKind kind, TransferId message, const std::string& bytes);
  void queue_frame(Peer& peer, FrameKind kind, std::string bytes);
  void flush_outbox(Peer& peer);
  void flush_outboxes();
  void received(Peer& peer, FrameKind kind, std::string_view bytes);
  void answer_revocations(Peer& peer);
  // progress.cpp: events and time
  bool look_around();
  bool drain_events();
  void on_event(const abi::AsyncEvent& event);
  bool tick(Clock::time_point now);
  [[nodiscard]] bool minds_time() const noexcept;
  void mind_time();
  void keep_time();

  Sink& sink_;
  const Library& library_;
  Port port_;
  Settings settings_;
  std::shared_ptr<Rails> rails_;
  std::uint16_t rail_;
  DomainAttributes attributes_;
  std::uint64_t handles_ = 0;

  Fd timer_;
  Handle<abi::Pd> pd_;
  Handle<abi::CompChannel> channel_;
  Handle<abi::Cq> cq_;
  Handle<abi::Srq> immediates_, receives_;
  // Frames: slots [0, kSlots) receive, [kSlots, 2 * kSlots) send; then a word that flushing reads go to, and one that
  // peers' flushing reads come from.
  std::size_t slot_nbytes_ = 0;
  std::unique_ptr<std::byte[]> arena_;
  Handle<abi::Mr> arena_registration_, anchor_registration_;
  std::vector<std::uint32_t> free_slots_;   // to send from
  std::vector<std::uint32_t> taken_slots_;  // receives to be posted again
  std::uint32_t immediates_taken_ = 0;      // likewise
  std::uint32_t completions_room_ = 0;      // entries of the CQ that no request in flight may need

  RecentMap<RegionNumber, LocalRegion> local_regions_;
  RecentMap<RegionNumber, RemoteRegion> remote_regions_;
  std::set<RegionNumber> closing_regions_;
  std::uint64_t next_serial_ = 1;
  RecentMap<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::set<PeerNumber> outboxes_;                              // of peers whose frames wait for room
  RecentMap<std::uint32_t, std::pair<Peer*, Queue*>> queues_;  // by their ids
  RecentMap<std::uint32_t, Peer*> by_qpn_;
  std::uint32_t next_queue_ = 1;

  std::uint32_t passes_ = 0;
  bool armed_ = false;          // the CQ will ring, or has rung and was not heard
  bool harvested_ = false;      // since the last arm()
  std::uint32_t unlooked_ = 0;  // arms since the last look_around()
  std::optional<Clock::time_point> timer_due_;
  std::optional<Clock::time_point> port_down_since_;
  Outcome dead_;  // not ok: the device is gone for good
};

// Options, all optional; yes and no are "1"/"True" and "0"/"False":
//   devices           "mlx5_0,mlx5_1:2": these ports, as rails in this order
//   rails             without `devices`: at most this many ports, the fastest that are up; 1
//   depth             work requests in flight per peer and rail; 512
//   inline_nbytes     payloads up to this size travel within the request, where the device offers it; 220
//   relaxed_ordering  let the device write payload in any order on the PCIe bus; yes
//   service_level     of InfiniBand, or the RoCE priority; 0
//   traffic_class     of the GRH: DSCP and ECN bits on RoCE v2; 0
//   timeout           a packet is sent again after 4.096 us * 2^timeout without an answer; 17 (0.54 s)
//   retries           as often as this, 0 … 7; 6
//   rnr_retries       as often as this when the peer has no receive posted, 7 for ever; 7
//   port_down_s       a port that is down for this long loses its peers; 2
//   stall_s           as does a peer on whose connection nothing completes for this long; 30
//   revoke_s          a peer that has not let go of a region by then has its connection broken; 2
//   library           path of libibverbs.so.1
// Throws Failure(unavailable) when the library or a device is missing, Failure(usage) for a malformed option.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::verbs
