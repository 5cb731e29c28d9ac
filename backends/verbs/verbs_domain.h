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

#include "../core/cached_lookup_map.h"
#include "../core/handles.h"
#include "device.h"
#include "domain.h"
#include "queue.h"
#include "wire.h"

namespace aio::verbs {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

struct Settings {
  std::uint32_t depth, inline_nbytes;
  bool relaxed_ordering;
  std::uint8_t service_level, traffic_class, timeout, retries, rnr_retries;
  Seconds port_down, stall, revoke;
};

inline constexpr std::uint32_t kFrameDepth = 64;  // of the message QP
inline constexpr std::uint32_t kSlots = 64;       // each way, shared by all peers
inline constexpr std::uint32_t kKeptSlots = 8;    // of the send slots: messages leave them to revocations
inline constexpr std::uint32_t kPeerSlots = 8;    // a peer's messages hold at most this many
inline constexpr std::size_t kMessageSlotNbytes = 16 << 10;
inline constexpr std::size_t kControlSlotNbytes = 64;  // the engine's messages leave by rail 0 alone
inline constexpr std::uint32_t kImmediates = 4096;     // receives for immediates, shared by all peers

inline constexpr std::size_t kAnchorNbytes = 8;

class VerbsDomain;

// The ports of one engine, which may stand in for each other. All are driven under one lock.
struct Rails {
  std::vector<VerbsDomain*> domains;
};

struct Peer {
  PeerNumber number;
  Queue data, frames;
  std::string blob;  // our end
  bool joined = false;
  std::string remote_blob;
  EndpointHead remote{};
  // A peer with fewer NICs has no partner for this one: its turn is served by another of ours. See join().
  VerbsDomain* deputy = nullptr;
  Outcome broken;  // not ok: the connection is over, and why; peer_lost whatever the cause was for whom it hit
  std::uint64_t read_nbytes = UINT64_MAX;  // larger reads are cut

  std::deque<std::pair<FrameKind, std::string>> outbox;  // frames that found no room
  std::uint32_t messages = 0;                            // slots held
  std::set<std::uint64_t> dead;                          // serials of its own that it takes back
  // To be answered once everything of ours up to that number has retired.
  std::deque<std::pair<std::uint64_t, std::uint64_t>> revocations;  // number, serial

  std::uint64_t retired = 0, retired_before = 0;  // requests; what stalls does not retire any
  std::uint64_t nbytes = 0;                       // of payload in flight
  std::optional<Clock::time_point> still_since;
};

struct LocalRegion {
  std::uint64_t addr, nbytes, serial;
  unsigned access;
  bool by_cpu;  // may be read by this process: not a device's memory
  Handle<abi::Mr> registration;
  std::set<PeerNumber> awaited;  // while it is taken back: those that may still be using it
  Clock::time_point closing_since;
};

struct RemoteRegion {
  PeerNumber peer;
  std::uint64_t nbytes;
  KeyBlob key;
  bool dead = false;
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
  // peers.cpp
  Peer* find(PeerNumber number) noexcept;
  Queue open_queue(std::uint32_t depth, std::uint32_t inline_nbytes, abi::Srq* srq);
  void write_blob(Peer& peer);
  [[nodiscard]] std::uint8_t reads_in_flight(int offered) const noexcept;
  void join(Peer& peer, const Endpoint& remote);
  void start_queue(Queue& queue, const abi::AhAttr& route, const EndpointHead& remote, std::uint32_t qpn,
                   std::uint32_t psn, std::uint32_t own_psn);
  abi::AhAttr route_to(const EndpointBlob& remote) const;
  void end(Peer& peer);
  void close_queues(Peer& peer);
  void await_receives(const Peer& peer);
  void break_off(Peer& peer, Outcome cause);
  void break_all(const Outcome& cause);
  // data.cpp
  bool read_part(Peer& peer, Flow& flow, const LocalRegion& local, const RemoteRegion& remote);
  bool chain(Peer& peer, Flow& flow, std::uint32_t count, const LocalRegion* local, const RemoteRegion* remote);
  // completions.cpp
  bool harvest();
  void complete(const abi::Wc& wc);
  void retire(Peer& peer, Queue& queue, std::uint64_t number, const Outcome& outcome, bool vouches);
  void finish(Peer& peer, const Request& request, const Outcome& outcome);
  void abandon(Peer& peer, Queue& queue);
  [[nodiscard]] Outcome describe_failure(const Peer& peer, const abi::Wc& wc) const;
  void post_immediates(std::uint32_t count);
  void post_receives();
  // frames.cpp
  bool post_frame(Peer& peer, FrameKind kind, TransferId message, const std::string& bytes);
  void queue_frame(Peer& peer, FrameKind kind, std::string bytes);
  void flush_outbox(Peer& peer);
  void flush_outboxes();
  void received(Peer& peer, FrameKind kind, std::string_view bytes);
  void answer_revocations(Peer& peer);
  // events.cpp
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

  CachedLookupMap<RegionNumber, LocalRegion> local_regions_;
  CachedLookupMap<RegionNumber, RemoteRegion> remote_regions_;
  std::set<RegionNumber> closing_regions_;
  std::uint64_t next_serial_ = 1;
  CachedLookupMap<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::set<PeerNumber> outboxes_;                                    // of peers whose frames wait for room
  CachedLookupMap<std::uint32_t, std::pair<Peer*, Queue*>> queues_;  // by their ids
  CachedLookupMap<std::uint32_t, Peer*> by_qpn_;
  std::uint32_t next_queue_ = 1;

  std::uint32_t passes_ = 0;
  bool armed_ = false;          // the CQ will ring, or has rung and was not heard
  bool harvested_ = false;      // since the last arm()
  std::uint32_t unlooked_ = 0;  // arms since the last look_around()
  std::optional<Clock::time_point> timer_due_;
  std::optional<Clock::time_point> port_down_since_;
  Outcome dead_;  // not ok: the device is gone for good
};

}  // namespace aio::verbs
