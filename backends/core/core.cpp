#include "core.h"

#include <unistd.h>

#include <utility>

namespace aio {

Core::Core(Wiring wiring, const CoreOptions& options, const DomainOpener& open)
    : wiring_(std::move(wiring)),
      events_(wiring_),
      scheduler_(events_),
      worker_(options, scheduler_, events_),
      pid_(::getpid()) {
  domains_ = open(*this);
  for (auto& domain : domains_) scheduler_.add_rail(*domain);
  worker_.start();
}

Core::~Core() {
  if (::getpid() != pid_) {  // a forked child: the worker stayed with the parent, and so did the devices
    worker_.abandon();
    for (auto& domain : domains_) static_cast<void>(domain.release());
    return;
  }
  worker_.stop();
  // Domains go before the transfers: until then they may still read their pieces.
  domains_.clear();
}

// ----------------------------------------------------------------------------------------------- control path

std::vector<std::string> Core::register_local(RegionNumber region, const LocalMemory& memory) {
  const auto lock = worker_.lock();
  std::vector<std::string> keys;
  try {
    for (auto& domain : domains_) keys.push_back(domain->register_local(region, memory));
  } catch (const Failure&) {
    for (std::size_t i = 0; i < keys.size(); ++i) domains_[i]->deregister(region);
    throw;
  }
  local_regions_.insert(region);
  return keys;
}

void Core::register_remote(RegionNumber region, PeerNumber peer, std::uint64_t nbytes,
                           const std::vector<std::string>& keys, const std::vector<int>& fds) {
  const auto lock = worker_.lock();
  if (!peers_.contains(peer)) throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  for (std::size_t i = 0; i < domains_.size(); ++i) {
    // A peer with n rails, fewer than ours, is reached at its rail i mod n: the planner pairs them the same way.
    domains_[i]->register_remote(region, RemoteMemory{peer, nbytes, keys[i % keys.size()], fds});
  }
}

void Core::deregister(RegionNumber region) {
  const auto lock = worker_.lock();
  if (local_regions_.erase(region) != 0) releases_[region] = domains_.size();
  for (auto& domain : domains_) domain->deregister(region);
  worker_.wake();
}

std::vector<Endpoint> Core::connect(PeerNumber peer, const std::optional<std::vector<Endpoint>>& remote) {
  const auto lock = worker_.lock();
  std::vector<Endpoint> ends;
  const std::size_t own = domains_.size();
  // The peer's further rails first: one that calls at once is then known.
  for (std::size_t i = own; remote && i < remote->size(); ++i) {
    domains_[i % own]->connect(peer, std::nullopt);
    domains_[i % own]->admit(peer, (*remote)[i]);
  }
  for (std::size_t i = 0; i < own; ++i) {
    std::optional<Endpoint> far;
    if (remote) far = (*remote)[i % remote->size()];
    ends.push_back(domains_[i]->connect(peer, far));
  }
  if (remote) {
    peers_.insert(peer);
    scheduler_.add_peer(peer);
  }
  worker_.wake();
  return ends;
}

void Core::disconnect(PeerNumber peer, bool lost) {
  const auto lock = worker_.lock();
  worker_.take_inbox();  // its transfers end with those that are queued
  peers_.erase(peer);
  fences_[peer] = domains_.size();
  scheduler_.remove_peer(peer, lost);
  worker_.wake();
}

void Core::send(PeerNumber peer, TransferId id, std::string payload) {
  const auto lock = worker_.lock();
  scheduler_.send(peer, id, std::move(payload));
  worker_.wake();
}

CoreStatistics Core::statistics() {
  const auto lock = worker_.lock();
  CoreStatistics now{};
  static_cast<SchedulerStatistics&>(now) = scheduler_.statistics();
  // relaxed: peers raise these while they are read; each is a total on its own.
  now.counts = wiring_.counters->counts.load(std::memory_order_relaxed);
  now.dropped = wiring_.counters->dropped.load(std::memory_order_relaxed);
  now.queued = scheduler_.in_flight();
  now.loop_passes = worker_.loop_passes();
  for (auto& domain : domains_) now.handles += domain->handles();
  return now;
}

void Core::drain(std::vector<Event>& out, std::size_t limit) {
  worker_.receive_wakeup();
  events_.drain(out, limit);
}

// -------------------------------------------------------------------------------------------------- data path

bool Core::post(TransferId id, const Run* runs, std::size_t n_runs, const Piece* pieces, std::size_t n_pieces) {
  auto transfer = pool_.assemble(id, {runs, n_runs, pieces, n_pieces}, domains_.size());
  if (!transfer) return true;
  if (scheduler_.is_small(transfer->nbytes, n_pieces, runs, n_runs)) {
    // try_lock: a caller that waited for a pass would be slower than one that hands over.
    auto lock = worker_.try_lock();
    if (lock.owns_lock()) {
      auto done = scheduler_.post_inline(std::move(transfer));
      const bool wake = !done && scheduler_.needs_worker();
      lock.unlock();
      if (wake) worker_.wake();
      if (!done) return false;
      pool_.recycle(std::move(done));
      return true;
    }
  }
  worker_.hand_over({&transfer, 1});
  worker_.wake();
  return false;
}

std::vector<std::uint32_t> Core::post_each(TransferId first, const Run* runs, std::size_t n_runs, const Piece* pieces,
                                           std::size_t n_pieces) {
  std::vector<std::unique_ptr<Transfer>> transfers;
  transfers.reserve(n_runs);
  std::uint64_t nbytes = 0;
  for (std::size_t i = 0; i < n_runs; ++i) {
    Run run = runs[i];
    if (std::uint64_t{run.first} + run.count > n_pieces || run.after != 0) {
      throw Failure(Failure::Kind::usage, "post", "a run names pieces that do not exist, or follows another");
    }
    const Piece* own = pieces + std::exchange(run.first, 0);
    transfers.push_back(pool_.assemble(first + i, {&run, 1, own, run.count}, domains_.size()));
    if (transfers.back()) nbytes += transfers.back()->nbytes;
  }
  std::vector<std::uint32_t> left;
  if (scheduler_.is_small(nbytes, n_pieces, runs, n_runs) && post_all_inline(transfers, left)) return left;
  for (std::uint32_t i = 0; i < n_runs; ++i) {
    if (transfers[i]) left.push_back(i);
  }
  worker_.hand_over(transfers);
  worker_.wake();
  return left;
}

// Returns false where the lock is taken: then nothing is posted.
bool Core::post_all_inline(std::vector<std::unique_ptr<Transfer>>& transfers, std::vector<std::uint32_t>& left) {
  auto lock = worker_.try_lock();
  if (!lock.owns_lock()) return false;
  // Many peers are written to before any of them is woken, which takes longer than writing.
  for (auto& domain : domains_) domain->hold_doorbells();
  for (std::uint32_t i = 0; i < transfers.size(); ++i) {
    if (!transfers[i]) continue;
    if (auto done = scheduler_.post_inline(std::move(transfers[i]))) {
      pool_.recycle(std::move(done));
    } else {
      left.push_back(i);
    }
  }
  bool all_rung = true;
  for (auto& domain : domains_) all_rung &= domain->release_doorbells();
  const bool wake = !all_rung || (!left.empty() && scheduler_.needs_worker());
  lock.unlock();
  if (wake) worker_.wake();
  return true;
}

// ------------------------------------------------------------------------------------- what domains report

void Core::stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) {
  scheduler_.stopped(flow, pieces, outcome);
}

void Core::counted(std::uint32_t immediate) { events_.counters().add_immediate(immediate); }

void Core::message(PeerNumber peer, std::string payload) {
  events_.emit({EventKind::message, Status::ok, peer, 0, std::move(payload)});
}

void Core::sent(TransferId message, const Outcome& outcome) { scheduler_.sent(message, outcome); }

void Core::released(RegionNumber region) {
  const auto found = releases_.find(region);
  if (found == releases_.end() || --found->second != 0) return;
  releases_.erase(found);
  events_.emit({EventKind::released, Status::ok, region, 0, {}});
}

void Core::fenced(PeerNumber peer) {
  const auto found = fences_.find(peer);
  if (found == fences_.end() || --found->second != 0) return;
  fences_.erase(found);
  events_.counters().rescan();
  events_.emit({EventKind::fenced, Status::ok, peer, 0, {}});
  events_.force_ring();
}

void Core::peer_failed(PeerNumber peer, const Outcome& outcome) {
  events_.emit({EventKind::peer_failed, outcome.status, peer, outcome.code, outcome.reason});
}

}  // namespace aio
