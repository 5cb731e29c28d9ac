// The libfabric Domain: one NIC, or one address of a software provider. Its methods are spread over domain.cpp
// (opening, attributes), endpoint.cpp (endpoints, addresses), memory.cpp (regions), connection.cpp (connecting,
// teardown, fences), queries.cpp (queries between peers), post.cpp (operations) and progress.cpp (completions, errors,
// timers).
#pragma once

#include <sys/uio.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../core/domain.h"
#include "connection.h"
#include "library.h"
#include "memory.h"
#include "policy.h"
#include "post.h"

namespace aio::libfabric {

class FabricDomain final : public Domain {
 public:
  FabricDomain(Sink& sink, const Library& library, InfoPtr info, const Options& options);
  ~FabricDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber peer, const std::optional<Endpoint>& remote) override;
  void admit(PeerNumber peer, const Endpoint& other) override;
  void disconnect(PeerNumber peer, bool lost) override;
  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber peer, TransferId message, const std::string& payload) override;
  bool progress() override;
  [[nodiscard]] bool needs_progress() const noexcept override { return has_deferred_work_; }
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] bool polled() const noexcept override { return wait_fd_ < 0; }
  [[nodiscard]] bool is_reachable(PeerNumber peer) const noexcept override;
  [[nodiscard]] std::uint64_t handles() const noexcept override { return handles_ + remote_regions_.size(); }

 private:
  // domain.cpp
  void check(const char* what, ssize_t result) const;
  void open_queues();
  void set_efa_attributes(const Channel& channel);
  void set_attributes();
  // endpoint.cpp
  Channel open_channel(bool shared, std::uint64_t* count);
  void set_efa_options(Channel& channel) const;
  [[nodiscard]] bool is_efa() const noexcept;
  [[nodiscard]] std::string path_name() const;
  void write_blob(Peer& peer) const;
  EndpointBlob accept(const Peer& peer, const Endpoint& remote) const;
  std::uint64_t insert(const EndpointBlob& blob);
  // memory.cpp
  Handle<abi::Mr> register_own(void* base, std::size_t nbytes, std::uint64_t access, std::uint64_t* count);
  Handle<abi::Mr> register_memory(const LocalMemory& memory, std::uint64_t access, std::uint64_t* count);
  void revoke(LocalRegion& region);
  void finish_deregistrations();
  // connection.cpp
  Peer* find(PeerNumber number) noexcept;
  void join(Peer& peer, const Endpoint& remote);
  void fence(Peer& peer);
  void teardown(Peer& peer);
  void shut_down_connections(Peer& peer);
  // queries.cpp
  void schedule_query(RemoteNic& nic) noexcept;
  void queue_query(Peer& peer, RemoteNic& nic, Clock::time_point now);
  void build_query(Peer& peer, RemoteNic& nic);
  bool flush_outbox(Peer& peer);
  void on_frame(Peer& peer, const std::byte* frame, std::size_t nbytes);
  void reply_to(Peer& peer, const RemoteNic& nic, std::uint64_t number, std::string_view asked_serials);
  void on_reply(Peer& peer, RemoteNic& nic, std::uint64_t number, const std::set<std::uint64_t>& stale);
  void resolve_suspended(Peer& peer, const Outcome* verdict);
  void mark_stale(Peer& peer, const std::set<std::uint64_t>& serials);
  // post.cpp
  [[nodiscard]] bool append_piece(Bundle& bundle, const Piece& piece, const LocalRegion* local,
                                  const RemoteRegion* remote) const;
  ssize_t post_bundle(Peer& peer, Op op, Bundle& bundle, Operation& operation);
  ssize_t post_payload_first(Peer& peer, Bundle& bundle);
  void on_posted(Operation& operation, std::uint64_t nbytes);
  void post_trailing_ack(Peer& peer);
  Posted refuse_next(Flow& flow, const Outcome& outcome);
  const Outcome* collect_bundle(Bundle& bundle, const Flow& flow, std::uint32_t end, const LocalRegion* local,
                                const RemoteRegion* remote) const;
  ssize_t post_pieces(Peer& peer, Flow& flow, std::uint32_t end, Bundle& bundle, const RemoteRegion* remote);
  Posted on_blocked(Peer& peer, Flow& flow);
  ssize_t post_frame(Peer& peer, Operation::Kind kind, TransferId message, std::string_view frame, std::uint64_t to);
  void post_receive(Channel& channel, Peer* peer, std::uint32_t slot);
  // progress.cpp
  bool service_peer(Peer& peer, Clock::time_point now);
  bool poll_completions();
  void drain_completions();
  void on_completion(const abi::CqEntry& entry);
  void repost_receive(Operation& operation);
  void fail(const abi::CqErrorEntry& error);
  void mark_rail_unreachable(Peer& peer);
  void on_write_completed(Operation& operation);
  void suspend(Operation& operation, int code);
  void suspend_unacknowledged(Peer& peer, int code);
  void finish(Operation& operation, const Outcome& outcome);
  Operation& acquire_operation(Purpose::Kind kind, Peer* peer);
  void release_operation(Operation& operation) noexcept;

  Sink& sink_;
  const Library& library_;
  InfoPtr info_;
  Policy policy_;
  std::uint32_t depth_;
  std::size_t max_segments_;
  std::chrono::duration<double> post_deadline_, verdict_;
  DomainAttributes attributes_;

  std::uint64_t handles_ = 0;
  Handle<abi::Fabric> fabric_;
  Handle<abi::DomainFid> domain_;
  Handle<abi::Cq> cq_;
  Handle<abi::Av> av_;
  int wait_fd_ = -1;
  std::uint64_t empty_target_memory_[8] = {};
  Handle<abi::Mr> empty_target_;  // target of pieces without payload: EFA requires a valid region even for them
  std::optional<Channel> shared_channel_;
  std::size_t cq_entries_ = 0;

  std::deque<Operation> operations_;  // addresses are stable
  std::vector<Operation*> free_operations_;
  std::unordered_map<RegionNumber, LocalRegion> local_regions_;
  std::unordered_map<RegionNumber, RemoteRegion> remote_regions_;
  std::set<RegionNumber> deregistering_;
  std::uint64_t next_serial_ = 1;
  std::unordered_map<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::unordered_map<std::uint64_t, Peer*> tokens_;
  std::vector<std::pair<Peer*, std::uint32_t>> unposted_receives_;  // receives that the provider had no room for
  bool arrival_seen_ = false;
  bool has_deferred_work_ = false;  // a peer waits for a deadline, or for room
  Clock::time_point last_arrival_{};
};

// Both are in the path of every operation, in post.cpp and in progress.cpp.
inline Operation& FabricDomain::acquire_operation(Purpose::Kind kind, Peer* peer) {
  if (free_operations_.empty()) free_operations_.push_back(&operations_.emplace_back());
  Operation& operation = *free_operations_.back();
  free_operations_.pop_back();
  static_cast<Purpose&>(operation) = {.kind = kind, .peer = peer};
  return operation;
}

inline void FabricDomain::release_operation(Operation& operation) noexcept {
  operation.kind = Operation::Kind::idle;
  operation.peer = nullptr;
  free_operations_.push_back(&operation);
}

// Options, all optional; aio_transfer's table of options has types, ranges and defaults.
//   provider         exact provider name
//   unproven         accept providers that break the contract (README.md)
//   address          source address (node)
//   interface        domain name, as listed by `aio-transfer devices`
//   interfaces       several domain names, separated by commas, in this order
//   fabric           fabric name
//   endpoints        efa: "peer" (one endpoint per peer) or "shared"
//   rnr_retry        efa: retries while the peer has no receive posted, 7: without limit
//   huge_pages       efa: FI_EFA_USE_HUGE_PAGE; not with fork_safe
//   fork_safe        efa: FI_EFA_FORK_SAFE; before Linux 5.13 the provider otherwise ends a process that forks
//   rails            largest number of domains
//   depth            operations in flight per peer
//   delivery         tcp: a write completes when the peer has it, not when the local kernel does
//   post_deadline_s  seconds without progress until an operation fails
//   verdict_s        seconds without a reply after a connection broke until a peer is lost
//   cpus             read by the core
//   library, search  see library.h
// Throws Failure(unavailable) if the library or the provider is missing, Failure(usage) for a malformed option.
std::vector<std::unique_ptr<Domain>> open_domains(Sink& sink, const Options& options);

}  // namespace aio::libfabric
