// Interface of a transport: a Domain is one NIC, or its counterpart in software. The core calls it, and it reports to
// the core's Sink.
//
// Every method is called with the core's lock held, from the worker or from the engine's thread, never from both at
// once. So a domain needs no lock of its own, and may call its sink from within any method.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "types.h"

namespace aio {

struct Transfer;

// One run of one transfer while a domain moves it. The core owns it and keeps it until every piece has stopped.
struct Flow {
  Transfer* transfer;
  const Piece* pieces;  // of this run; `run.count` of them
  Run run;
  std::uint32_t next = 0;          // pieces[0 .. next) were accepted by the domain
  std::uint32_t in_flight = 0;     // accepted, and not yet reported as stopped
  std::uint64_t offset = 0;        // bytes of pieces[next] already moved; for domains that move a piece in steps
  bool failed = false;             // nothing more of it will be posted
  bool in_lane = false;            // the core's: a lane still names it
  Flow* successor = nullptr;       // the core's: may start once this one, and others, have stopped
  std::uint32_t predecessors = 0;  // the core's: how many it follows that have not stopped
  std::uint64_t batch_nbytes = 0;  // payload of the whole transfer: what a copy pushes through the caches

  [[nodiscard]] bool exhausted() const noexcept { return failed || next == run.count; }
};

// Reports of a domain to the core.
class Sink {
 public:
  // `pieces` accepted pieces of `flow` have stopped moving. `flow` may be gone when this returns if they were its last.
  virtual void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) = 0;
  // A peer's write with this immediate is visible in our memory.
  virtual void counted(std::uint32_t immediate) = 0;
  virtual void message(PeerNumber peer, std::string payload) = 0;
  virtual void sent(TransferId message, const Outcome& outcome) = 0;
  virtual void released(RegionNumber region) = 0;
  virtual void fenced(PeerNumber peer) = 0;
  virtual void peer_failed(PeerNumber peer, const Outcome& outcome) = 0;

 protected:
  ~Sink() = default;
};

struct DomainAttributes {
  std::string name;      // of the NIC, for people
  std::string provider;  // what carries the bytes
  std::string protocol;  // how a write is done, in words
  std::uint64_t max_piece_nbytes = UINT64_MAX;
  std::uint64_t max_message_nbytes = 0;
  // Which backend `auto` takes where several reach a peer: the highest. Of one driver, its first rail's counts.
  int preference = 0;
  bool same_host = false;
  bool grants = false;
  bool device_memory = false;  // a dma-buf can be registered
  // The descriptors that arm() returns become readable for every arrival, stay the same for as long as the domain
  // lives, and what progress() then does is short enough for the event loop's thread.
  bool notifies_arrivals = false;
  // They become readable for every completion too, once armed: nothing has to poll meanwhile.
  bool notifies_completions = false;
  // A batch of at most this many bytes and pieces is posted by the calling thread itself; one that exceeds either, or
  // finds the domain busy, is handed to the worker. Measured per transport: benchmarks/log.md.
  std::uint64_t inline_nbytes = 0;
  std::uint32_t inline_pieces = 0;
  // Pieces of one peer that are posted before it is the next peer's turn.
  std::uint32_t quantum = 32;
};

enum class Posted : std::uint8_t {
  more,  // the budget is spent, or the flow is exhausted
  full,  // no slot is free for this peer now; try again after progress
};

class Domain {
 public:
  Domain() = default;
  Domain(const Domain&) = delete;
  Domain& operator=(const Domain&) = delete;
  virtual ~Domain() = default;  // must leave nothing that could still touch memory

  [[nodiscard]] virtual const DomainAttributes& attributes() const noexcept = 0;

  // -- control path: may throw Failure --

  // Returns the key bytes that a peer's register_remote takes.
  virtual std::string register_local(RegionNumber region, const LocalMemory& memory) = 0;
  virtual void register_remote(RegionNumber region, const RemoteMemory& memory) = 0;
  // For local memory, sink.released(region) follows as soon as no peer can reach it: at once, or from progress().
  virtual void deregister(RegionNumber region) = 0;
  // Called first without, then with the peer's endpoint; returns the local one both times. A blob is at most 4 KiB.
  virtual Endpoint connect(PeerNumber peer, const std::optional<Endpoint>& remote) = 0;
  // Accepts a further NIC of a peer that has more of them than we: it writes to us, and is never written to. Called
  // between the two calls of connect().
  virtual void admit(PeerNumber, const Endpoint&) {}
  // Every piece in flight to this peer must be reported as stopped (peer_lost), now or from progress();
  // sink.fenced(peer) follows when nothing it ever started can still land here.
  virtual void disconnect(PeerNumber peer, bool lost) = 0;

  // -- data path: must not throw --

  // Accepts pieces of `flow` from `flow.next` on, at most `budget` of them, raising next and in_flight for each
  // *before* it can be reported as stopped. A piece that fails to post is accepted first and then reported as stopped;
  // the core then posts no more of that flow.
  virtual Posted post(Flow& flow, std::uint32_t budget) = 0;
  // Between these two, peers that are written to need not be woken: many are written to before the first is woken. The
  // second returns whether all have been; otherwise progress() wakes the others.
  virtual void hold_doorbells() {}
  virtual bool release_doorbells() { return true; }
  // Sends one message; its bytes are copied if they are needed after the call. `full`: try again after progress.
  virtual Posted send(PeerNumber peer, TransferId message, const std::string& payload) = 0;
  // Handles completions, arrivals and fences. Returns whether there were any.
  virtual bool progress() = 0;
  // Whether something in flight is noticed only by calling progress() again, and not by a descriptor of arm().
  [[nodiscard]] virtual bool needs_progress() const noexcept = 0;
  // Prepares to block. Returns the descriptors whose readability means that progress() has work, or nothing where there
  // is work already. A transport that notices arrivals only by polling returns no descriptor, and true from polled().
  virtual std::optional<std::vector<int>> arm() = 0;
  [[nodiscard]] virtual bool polled() const noexcept { return false; }
  // Whether a worker that never blocks handles arrivals sooner.
  [[nodiscard]] virtual bool benefits_from_spinning() const noexcept { return true; }
  // Whether packets get through to this peer, as far as is known. Where they do not, flows that have not begun take
  // another rail.
  [[nodiscard]] virtual bool is_reachable(PeerNumber) const noexcept { return true; }
  // Open native handles, for leak checks: zero once every region and peer is gone.
  [[nodiscard]] virtual std::uint64_t handles() const noexcept = 0;
};

// Opens the domains of one backend, one per rail, that report to the sink. May throw Failure.
using DomainOpener = std::function<std::vector<std::unique_ptr<Domain>>(Sink&)>;

}  // namespace aio
