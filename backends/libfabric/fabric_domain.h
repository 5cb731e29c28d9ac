// The libfabric Domain. What its files do: domain.cpp opens and closes, memory.cpp registers and revokes, peers.cpp
// connects and fences, data.cpp moves bytes, wire.h says what travels.
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

#include "domain.h"
#include "wire.h"

namespace aio::libfabric {

using Clock = std::chrono::steady_clock;

inline constexpr std::size_t kSlotNbytes = 32 << 10;      // one message with its header, unless the endpoint takes less
inline constexpr std::size_t kLeastSlotNbytes = 8 << 10;  // efa-direct: one packet, 8928 bytes; ofi_rxm
inline constexpr std::uint32_t kSlots = 8;                // each way, per endpoint of one peer
inline constexpr std::uint32_t kSharedSlots = 64;         // each way, where all peers share an endpoint
inline constexpr std::uint32_t kImmediateSlots = 256;     // to receive, where immediates use receives up

inline constexpr std::size_t kHarvested = 1024;  // completions per round at most
inline constexpr std::size_t kMostSegments = 8;  // of one operation; tcp takes 4, EFA 1

// Owns one libfabric object, and counts it where it belongs to a region or a peer.
template <class Object>
class Handle {
 public:
  Handle() = default;
  Handle(Object* object, std::uint64_t* count) noexcept : object_(object), count_(count) {
    if (count_ != nullptr) ++*count_;
  }
  Handle(Handle&& other) noexcept : object_(std::exchange(other.object_, nullptr)), count_(other.count_) {}
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      object_ = std::exchange(other.object_, nullptr);
      count_ = other.count_;
    }
    return *this;
  }
  ~Handle() { reset(); }

  void reset() noexcept {
    if (object_ == nullptr) return;
    // A refused close stays counted: the leak check then shows it.
    const int result = abi::close(&std::exchange(object_, nullptr)->fid);
    if (result == 0 && count_ != nullptr) --*count_;
  }
  [[nodiscard]] Object* get() const noexcept { return object_; }
  [[nodiscard]] abi::Fid* fid() const noexcept { return &object_->fid; }
  Object* operator->() const noexcept { return object_; }
  explicit operator bool() const noexcept { return object_ != nullptr; }

 private:
  Object* object_ = nullptr;
  std::uint64_t* count_ = nullptr;
};

// What differs between providers, and why.
struct Policy {
  // Each peer has an endpoint of its own, since closing that is what keeps out a peer that thaws: over tcp it closes
  // the connections, on efa the queue pair that its writes name. Where all share one, a lost peer is kept out by
  // closing registrations alone, and what is under way to it has to end by itself.
  bool shared_endpoint = false;
  // efa: the NIC checks every packet against the key, so closing the registration is enough. The software providers
  // (and rxm's receive path) look a key up when an operation begins and keep writing afterwards.
  bool close_revokes = false;
  // efa: once an endpoint is closed, nothing comes of what was posted to it.
  bool close_forgets = false;
  // The fabric `efa`: closing an endpoint waits, on the calling thread, until the device has given up what is under
  // way.
  bool close_waits = false;
  // efa: the device takes remote accesses only from those whose address its owner has inserted (libfabric #11054), so
  // nothing is written before the peer has answered. Nor, for want of another sign, after packets were lost.
  bool greets = false;
  // efa: how often the device offers a packet again that found no receive; 7 is for ever. -1: the provider's choice.
  int rnr_retry = -1;
  // efa-direct built against an older rdma-core, or on an older device: a write's immediate uses a receive up.
  bool immediates_consume = false;
  // tcp completes a write when the kernel has taken the bytes: one that the peer then refuses, or never reads, has
  // "succeeded". With FI_DELIVERY_COMPLETE the peer acknowledges, at the price of a system call for each write there
  // (4 KiB pages: 90,000/s instead of 150,000). The stream is ordered, so only the last of a batch asks for it, and
  // vouches for those before it.
  bool delivery = false;
  // tcp: closing an endpoint leaves connections behind that crash it later. See end_connections().
  bool forgets_connections = false;
  // ofi_rxm over tcp: a write that carries an immediate, and whose connection ends before its payload is in, is told to
  // rxm as an error without a context, which rxm follows (rxm_handle_comp_error, 2.5.1): a crash of its target. A write
  // without one is not told, and one without payload is never half in. So the payload goes ahead, and over a stream the
  // immediate comes after it.
  bool payload_ahead = false;
  // ofi_rxm over verbs has receives for each connection, since what takes one of a shared pool is taken for a message
  // there (vrb_poll_cq, 2.5.1 and later), and an immediate is never told. Before 2.7, what has come and is not read as
  // a connection closes is followed once that is freed, by posting its receive again (rxm_close_conn,
  // rxm_flush_msg_cq). So it is read first. What comes in the microseconds between still crashes it.
  bool close_reposts = false;
  // ofi_rxm cuts what exceeds its buffers in segments. A message of which some have come as its connection closes is
  // taken for something else, and followed (rxm_close_conn: deferred_sar_msgs, 2.5.1): a crash. And it fills 2,048
  // buffers with zeros for each endpoint, which is why they are not longer.
  std::size_t slot_nbytes = kSlotNbytes;
  bool unproven = false;  // the caller takes what README.md says against it
};

struct Peer;

// What an operation is for.
struct Purpose {
  enum class Kind : std::uint8_t { idle, piece, message, control, receive, abandoned } kind = Kind::idle;
  // Under Policy::delivery. In Peer::unconfirmed while `ordered` and not `confirmed` and not `doubtful`.
  bool ordered = false;
  bool vouches = false;      // asks the peer for an acknowledgement
  bool left = false;         // the provider is done with it
  bool confirmed = false;    // the peer has it
  bool doubtful = false;     // its connection may have broken behind it
  std::uint32_t pieces = 1;  // of `flow`, next to each other
  std::uint32_t slot = kNoSlot;
  Peer* peer = nullptr;  // null: a receive on the shared endpoint
  Flow* flow = nullptr;
  TransferId message = 0;
  std::uint64_t serial = 0;  // of the remote region
  std::uint64_t nbytes = 0;

  static constexpr std::uint32_t kNoSlot = ~0u;
  [[nodiscard]] bool slot_held() const noexcept { return slot != kNoSlot; }
};

// One operation in the provider's hands, named to it by its context. Never freed before its completion was read. Under
// FI_CONTEXT and FI_CONTEXT2 the provider scribbles over the context, which therefore never needs to be wiped.
struct Operation final : abi::Context, Purpose {
  static Operation& of(void* context) noexcept { return *static_cast<Operation*>(static_cast<abi::Context*>(context)); }
  [[nodiscard]] void* context() noexcept { return static_cast<abi::Context*>(this); }
};

// What goes to the provider as one operation: a piece, or several neighbours of one flow. A count is due once its
// payload is visible, so that one immediate may stand for the counts of all.
struct Bundle {
  std::array<iovec, kMostSegments> near;
  std::array<void*, kMostSegments> descs;
  std::array<abi::RmaIov, kMostSegments> far;
  std::size_t segments = 0;  // pieces without payload need none
  std::uint32_t pieces = 0;
  std::uint32_t flags = 0;
  std::uint32_t immediate = 0;
  std::uint64_t nbytes = 0;
};

// An endpoint with the registered buffers its messages travel through: slots [0, receives) receive, the others send.
struct Channel {
  std::uint32_t receives = 0, sends = 0;
  std::size_t slot_nbytes = kSlotNbytes;
  std::unique_ptr<std::byte[]> arena;
  std::vector<std::uint32_t> free_slots;
  // The endpoint is declared last: it must go before the memory it writes to.
  Handle<abi::Mr> registration;
  Handle<abi::Ep> endpoint;

  [[nodiscard]] std::byte* at(std::uint32_t slot) const noexcept { return arena.get() + slot * slot_nbytes; }
  [[nodiscard]] void* desc() const noexcept { return registration ? registration->mem_desc : nullptr; }
};

// An operation whose connection broke: whether the peer refused a stale key, fell over or just reconnects is asked of
// the peer itself before anybody is told.
struct Suspended {
  Flow* flow;
  std::uint32_t pieces;
  TransferId message;
  std::uint64_t serial;
  int code;
};

// One NIC of a peer. Questions to it: one is open at a time, each answered by its number. See memory.cpp.
struct End {
  std::uint64_t token = 0;  // what frames to it must quote, and what those from it say that they are from
  std::uint64_t address = abi::addr_unspec;
  std::uint64_t wanted = 0, asked = 0, answered = 0;
  std::string question;
  Clock::time_point asked_at;
  int repeats = 0;
  std::set<std::uint64_t> revoking, told;  // serials of ours that it must forget; those in the open question

  [[nodiscard]] bool owes() const noexcept { return wanted > answered; }
};

struct Peer {
  PeerNumber number;
  std::uint64_t token;         // what it must quote
  std::optional<Channel> own;  // unless the domain shares one
  Channel* channel = nullptr;
  std::string blob;  // our end
  bool joined = false;
  std::string remote_blob;
  // Under Policy::greets: the answer before which nothing is written, and since when it is waited for.
  std::uint64_t greeting = 1;
  Clock::time_point greeting_since;
  EndpointBlob remote;
  // The first is the one that our NIC is paired with. None of ours is with the others: they write to us, and ask and
  // are asked, and are never written to.
  std::vector<End> ends = std::vector<End>(1);

  std::uint32_t in_flight = 0;
  std::uint64_t nbytes_in_flight = 0;
  std::optional<Clock::time_point> stalled;  // since when it took nothing
  std::deque<Operation*> unconfirmed;        // writes in the order of posting

  std::vector<std::string> early;  // messages that came before connect() named their sender

  std::set<std::uint64_t> dead;                              // serials of its own that it has deregistered
  std::deque<std::pair<std::uint64_t, std::string>> outbox;  // with the address that each goes to

  std::vector<Suspended> suspended;
  Clock::time_point suspended_at;
  std::uint64_t verdict_number = 0;

  bool leaving = false;  // disconnect() was called
  bool lost = false;     // and said that nobody is there any more
  bool closing = false;  // the endpoint is being closed: every error is peer_lost
  Clock::time_point leaving_since;

  [[nodiscard]] End& partner() noexcept { return ends.front(); }
  [[nodiscard]] bool greeted() const noexcept { return ends.front().answered >= greeting; }
  [[nodiscard]] End* find(std::uint64_t token) noexcept {
    const auto found = std::ranges::find(ends, token, &End::token);
    return found == ends.end() ? nullptr : &*found;
  }
};

struct LocalRegion {
  std::uint64_t addr, nbytes, serial;
  unsigned access;
  Handle<abi::Mr> registration;
  bool revoking = false;
  // After the registration is closed: by peer, and its end's token, the answer that must have come.
  std::map<std::pair<PeerNumber, std::uint64_t>, std::uint64_t> awaited;
};

struct RemoteRegion {
  PeerNumber peer;
  std::uint64_t nbytes;
  KeyBlob key;
  bool dead = false;
};

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
  [[nodiscard]] bool needs_progress() const noexcept override { return chores_; }
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] bool polled() const noexcept override { return wait_fd_ < 0; }
  [[nodiscard]] bool is_reachable(PeerNumber peer) const noexcept override;
  [[nodiscard]] std::uint64_t handles() const noexcept override { return handles_ + remote_regions_.size(); }

 private:
  // domain.cpp
  void check(const char* what, ssize_t result) const;
  void open_queues();
  Channel open_channel(bool shared, std::uint64_t* count);
  [[nodiscard]] std::string kind() const;
  void describe_efa(const Channel& channel);
  void describe();
  // memory.cpp
  Handle<abi::Mr> register_own(void* base, std::size_t nbytes, std::uint64_t access, std::uint64_t* count);
  Handle<abi::Mr> register_memory(const LocalMemory& memory, std::uint64_t access, std::uint64_t* count);
  void revoke(LocalRegion& region);
  void settle_regions();
  // peers.cpp
  Peer* find(PeerNumber number) noexcept;
  void join(Peer& peer, const Endpoint& remote);
  EndpointBlob accept(const Peer& peer, const Endpoint& remote) const;
  std::uint64_t insert(const EndpointBlob& blob);
  void ask(End& end) noexcept;
  bool tend(Peer& peer, Clock::time_point now);
  void put_question(Peer& peer, End& end, Clock::time_point now);
  void write_question(Peer& peer, End& end);
  bool flush_outbox(Peer& peer);
  void received(Peer& peer, const std::byte* frame, std::size_t nbytes);
  void answer(Peer& peer, const End& end, std::uint64_t number, std::string_view doubtful);
  void answered(Peer& peer, End& end, std::uint64_t number, const std::set<std::uint64_t>& dead);
  void resolve(Peer& peer, const Outcome* verdict);
  void forget(Peer& peer, const std::set<std::uint64_t>& serials);
  void fence(Peer& peer);
  void fence_quietly(Peer& peer);
  void end_connections(Peer& peer);
  // data.cpp
  [[nodiscard]] bool join_bundle(Bundle& bundle, const Piece& piece, const LocalRegion* local,
                                 const RemoteRegion* remote) const;
  ssize_t post_bundle(Peer& peer, Op op, Bundle& bundle, Operation& operation);
  ssize_t post_ahead(Peer& peer, Bundle& bundle);
  void enlist(Operation& operation, std::uint64_t nbytes);
  void vouch_for_tail(Peer& peer);
  Posted blocked(Peer& peer, Flow& flow);
  ssize_t post_frame(Peer& peer, Operation::Kind kind, TransferId message, std::string_view frame, std::uint64_t to);
  void post_receive(Channel& channel, Peer* peer, std::uint32_t slot);
  bool harvest();
  void harvest_queued();
  void complete(const abi::CqEntry& entry);
  void renew(Operation& operation);
  void fail(const abi::CqErrorEntry& error);
  void lose_sight(Peer& peer);
  void departed(Operation& operation);
  void suspend(Operation& operation, int code);
  void suspend_unconfirmed(Peer& peer, int code);
  void finish(Operation& operation, const Outcome& outcome);
  Operation& acquire(Purpose::Kind kind, Peer* peer);
  void recycle(Operation& operation) noexcept;

  Sink& sink_;
  const Library& library_;
  InfoPtr info_;
  Policy policy_;
  std::uint32_t depth_;
  std::size_t most_segments_;
  std::chrono::duration<double> post_deadline_, verdict_;
  DomainAttributes attributes_;

  std::uint64_t handles_ = 0;
  Handle<abi::Fabric> fabric_;
  Handle<abi::DomainFid> domain_;
  Handle<abi::Cq> cq_;
  Handle<abi::Av> av_;
  int wait_fd_ = -1;
  std::uint64_t anchor_memory_[8] = {};
  Handle<abi::Mr> anchor_;  // what pieces without payload name: EFA wants a valid region even then
  std::optional<Channel> shared_;
  std::size_t cq_entries_ = 0;

  std::deque<Operation> operations_;  // stable addresses
  std::vector<Operation*> idle_;
  std::unordered_map<RegionNumber, LocalRegion> local_regions_;
  std::unordered_map<RegionNumber, RemoteRegion> remote_regions_;
  std::set<RegionNumber> closing_regions_;
  std::uint64_t next_serial_ = 1;
  std::unordered_map<PeerNumber, std::unique_ptr<Peer>> peers_;
  std::unordered_map<std::uint64_t, Peer*> tokens_;
  std::vector<std::pair<Peer*, std::uint32_t>> unposted_;  // receive slots that found no room
  bool arrived_ = false;
  bool chores_ = false;  // some peer waits for time to pass, or for room
  Clock::time_point last_arrival_{};
};

}  // namespace aio::libfabric
