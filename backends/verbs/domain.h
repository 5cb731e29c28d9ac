// The verbs Domain: one port of an RDMA device. Its methods are spread over domain.cpp (opening, attributes),
// endpoint.cpp (blobs, routes), memory.cpp (regions), connection.cpp (QPs, teardown), post.cpp (work requests),
// progress.cpp (completions, events, timers) and control_messages.cpp (messages, revocations).
#pragma once

#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "../core/cached_lookup_map.h"
#include "../core/domain.h"
#include "../core/handles.h"
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

// The ports of one engine; a surplus port passes its traffic on to another. All are driven under one lock.
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
  [[nodiscard]] std::byte* flush_target() const noexcept { return arena_.get() + 2 * kSlots * slot_nbytes_; }
  [[nodiscard]] std::byte* flush_source() const noexcept { return flush_target() + kFlushWordNbytes; }
  // memory.cpp
  Handle<abi::Mr> register_memory(const LocalMemory& memory, unsigned access, std::uint64_t* count);
  void revoke(LocalRegion& region);
  bool finish_deregistrations();
  // endpoint.cpp
  void write_blob(Peer& peer);
  [[nodiscard]] std::uint8_t max_reads(int offered) const noexcept;
  abi::AhAttr make_route(const EndpointBlob& remote) const;
  // connection.cpp
  Peer* find(PeerNumber number) noexcept;
  Queue create_queue(std::uint32_t depth, std::uint32_t inline_nbytes, abi::Srq* srq);
  void join(Peer& peer, const Endpoint& remote);
  void connect_queue(Queue& queue, const abi::AhAttr& route, const EndpointHead& remote, std::uint32_t qpn,
                     std::uint32_t psn, std::uint32_t own_psn);
  void destroy(Peer& peer);
  void destroy_queues(Peer& peer);
  void wait_for_receives(const Peer& peer);
  void fail_connection(Peer& peer, Outcome cause);
  void fail_all_connections(const Outcome& cause);
  // post.cpp
  std::uint32_t count_valid(const Peer& peer, const Flow& flow, std::uint32_t wanted, const LocalRegion* local,
                            const RemoteRegion* remote, const Outcome*& refused) const noexcept;
  bool post_read_segment(Peer& peer, Flow& flow, const LocalRegion& local, const RemoteRegion& remote);
  bool post_chain(Peer& peer, Flow& flow, std::uint32_t count, const LocalRegion* local, const RemoteRegion* remote);
  static void build_request(Chain& chain, std::uint32_t at, const Queue& queue, const Flow& flow,
                            const LocalRegion* local, const RemoteRegion* remote) noexcept;
  void append_flush_read(Chain& chain, const Peer& peer, const RemoteRegion& remote) noexcept;
  void record_posted(const Chain& chain, std::uint32_t accepted, Peer& peer, Flow& flow) noexcept;
  // progress.cpp: completions
  bool poll_completions();
  void on_completion(const abi::Wc& wc);
  void retire(Peer& peer, Queue& queue, std::uint64_t number, const Outcome& outcome, bool confirms_earlier);
  void finish(Peer& peer, const Request& request, const Outcome& outcome);
  void fail_remaining(Peer& peer, Queue& queue);
  [[nodiscard]] Outcome describe_error(const Peer& peer, const abi::Wc& wc) const;
  void post_immediate_receives(std::uint32_t count);
  void post_message_receives();
  // control_messages.cpp
  bool post_frame(Peer& peer, FrameKind kind, TransferId message, const std::string& bytes);
  void queue_frame(Peer& peer, FrameKind kind, std::string bytes);
  void flush_outbox(Peer& peer);
  void flush_outboxes();
  void on_frame(Peer& peer, FrameKind kind, std::string_view bytes);
  void acknowledge_revocations(Peer& peer);
  // progress.cpp: events, timers
  bool check_events();
  bool poll_events();
  void on_event(const abi::AsyncEvent& event);
  bool on_timer(Clock::time_point now);
  [[nodiscard]] bool has_deadlines() const noexcept;
  void start_timer_if_needed();
  void start_timer();

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
  Handle<abi::Srq> immediate_receives_, message_receives_;
  // Message slots: [0, kSlots) receive, [kSlots, 2 * kSlots) send. Behind them a word that flushing reads are written
  // to, and one that peers' flushing reads read.
  std::size_t slot_nbytes_ = 0;
  std::unique_ptr<std::byte[]> arena_;
  Handle<abi::Mr> arena_registration_, flush_source_registration_;
  std::vector<std::uint32_t> free_slots_;          // for sending
  std::vector<std::uint32_t> used_receive_slots_;  // receives to post again
  std::uint32_t immediate_receives_used_ = 0;      // receives to post again
  std::uint32_t free_cq_entries_ = 0;              // CQ entries that no posted request can need

  CachedLookupMap<RegionNumber, LocalRegion> local_regions_;
  CachedLookupMap<RegionNumber, RemoteRegion> remote_regions_;
  std::set<RegionNumber> deregistering_;
  std::uint64_t next_serial_ = 1;
  CachedLookupMap<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::set<PeerNumber> blocked_outboxes_;                            // peers with frames that did not fit
  CachedLookupMap<std::uint32_t, std::pair<Peer*, Queue*>> queues_;  // by id
  CachedLookupMap<std::uint32_t, Peer*> peers_by_qpn_;
  std::uint32_t next_queue_ = 1;

  std::uint32_t progress_calls_ = 0;
  bool armed_ = false;                  // the CQ will signal its channel, or has and the event was not taken
  bool polled_some_ = false;            // since the last arm()
  std::uint32_t arms_since_check_ = 0;  // since the last check_events()
  std::optional<Clock::time_point> timer_due_;
  std::optional<Clock::time_point> port_down_since_;
  Outcome device_failure_;  // not ok: the device is unusable
};

// Options, all optional; aio_transfer's table of options has types, ranges and defaults.
//   devices           ports, in the order of the rails: "mlx5_0,mlx5_1:2"
//   rails             without `devices`: number of ports, the fastest that are up
//   depth             work requests in flight per peer and rail
//   inline_nbytes     largest payload sent inline, if the device offers it
//   relaxed_ordering  allow relaxed PCIe ordering of payload
//   service_level     InfiniBand service level, or RoCE priority
//   traffic_class     GRH traffic class: DSCP and ECN bits on RoCE v2
//   timeout           ACK timeout: 4.096 us * 2^timeout
//   retries           transport retries after a timeout
//   rnr_retries       retries while the peer has no receive posted, 7: without limit
//   port_down_s       seconds until a port that is down fails its peers
//   stall_s           seconds without a completion until a peer fails
//   revoke_s          seconds that deregistration waits for a peer
//   library           path of libibverbs.so.1
// Throws Failure(unavailable) if the library or a device is missing, Failure(usage) for a malformed option.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::verbs
