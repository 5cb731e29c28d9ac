#include "core.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

namespace aio {

namespace {

using Clock = std::chrono::steady_clock;

// Waking a loop that sleeps takes some microseconds of whoever does it. While a worker has more to copy, the end of one
// batch is told along with the next, unless it has waited for so long.
constexpr auto kBellDelay = std::chrono::microseconds(100);
// How long the loop may take to see to an arrival before the worker does; how long the worker then stays behind a loop
// that has seen to one, without looking itself; and how long that may have kept the loop.
constexpr timespec kHeadStart{0, 100'000};
constexpr timespec kBehind{0, 1'000'000};
constexpr auto kBrief = std::chrono::microseconds(100);
// How often a domain is looked at one of whose descriptors is never quiet again.
constexpr timespec kBesideTheDead{0, 10'000'000};
constexpr unsigned kUnshared = 64;        // sleeps of the worker that it keeps to itself when that was not worth it
constexpr std::size_t kFewTransfers = 2;  // with more under way, the loop has something to do besides
constexpr std::size_t kSpareTransfers = 256;
constexpr std::size_t kSparePieces = 64;

const Outcome kPeerLost{Status::peer_lost, 0, "the connection is closed"};

// Takes out what has only failed: the descriptors of a device that is gone, which would wake the worker for ever.
// Returns whether there are such, and nothing else has anything to say.
bool drop_dead(std::vector<pollfd>& fds) noexcept {
  bool dead = false;
  bool quiet = true;
  for (pollfd& one : fds) {
    if ((one.revents & POLLIN) != 0) {
      quiet = false;
    } else if (one.revents != 0) {
      one.fd = -1;  // poll(2) passes over it
      dead = true;
    }
  }
  return dead && quiet;
}

void clear(int eventfd) noexcept {
  std::uint64_t value = 0;
  [[maybe_unused]] const auto got = ::read(eventfd, &value, sizeof value);
}

}  // namespace

Core::Core(Wiring wiring, const CoreOptions& options, const DomainOpener& open)
    : wiring_(std::move(wiring)),
      options_(options),
      counters_(wiring_.counters, wiring_.doorbell_fd),
      wake_fd_(make_eventfd()),
      pid_(::getpid()) {
  // Parked from the start: the first event must ring.
  wiring_.counters->parked.store(1, std::memory_order_seq_cst);
  domains_ = open(*this);
  for (auto& domain : domains_) rails_.push_back(Rail{domain.get(), {}, {}});
  const bool spins = options_.always_spin || options_.spin.count() > 0;
  const auto told = [](const auto& domain) { return domain->attributes().notifies_arrivals; };
  if (!options_.stepped && !spins && std::ranges::all_of(domains_, told)) watch_.emplace(wiring_.doorbell_fd);
  if (!options_.stepped) worker_ = std::thread([this] { run(); });
}

Core::~Core() {
  if (::getpid() != pid_) {  // a forked child: the worker stayed with the parent, and so did the devices
    if (worker_.joinable()) worker_.detach();
    for (auto& domain : domains_) static_cast<void>(domain.release());
    return;
  }
  stop_.store(true, std::memory_order_seq_cst);
  wake_worker();
  if (worker_.joinable()) worker_.join();
  // Domains go first: until then they may still read the pieces of a transfer.
  domains_.clear();
}

std::unique_lock<std::mutex> Core::enter() {
  // A hook that waited for the lock would wait for itself: one thread does everything.
  if (stepping_)
    throw Failure(Failure::Kind::usage, "engine", "a route hook cannot use the engine that it runs inside");
  callers_.fetch_add(1, std::memory_order_relaxed);
  std::unique_lock lock(mutex_);
  callers_.fetch_sub(1, std::memory_order_relaxed);
  return lock;
}

// ---------------------------------------------------------------------------------------------- control path

std::vector<std::string> Core::register_local(RegionNumber region, const LocalMemory& memory) {
  auto lock = enter();
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
  auto lock = enter();
  if (!peers_.contains(peer)) throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  for (std::size_t i = 0; i < domains_.size(); ++i) {
    // A peer with fewer rails than ours is reached at its rail i mod n: the planner pairs them the same way.
    domains_[i]->register_remote(region, RemoteMemory{peer, nbytes, keys[i % keys.size()], fds});
  }
}

void Core::deregister(RegionNumber region) {
  auto lock = enter();
  if (local_regions_.erase(region) != 0) releases_[region] = static_cast<unsigned>(domains_.size());
  for (auto& domain : domains_) domain->deregister(region);
  wake_worker();
}

std::vector<Endpoint> Core::connect(PeerNumber peer, const std::optional<std::vector<Endpoint>>& remote) {
  auto lock = enter();
  std::vector<Endpoint> ends;
  const std::size_t own = domains_.size();
  // Before they are joined, so that whoever asks first is known.
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
    for (auto& rail : rails_) rail.lanes.try_emplace(peer).first->second.peer = peer;
  }
  wake_worker();
  return ends;
}

void Core::disconnect(PeerNumber peer, bool lost) {
  auto lock = enter();
  take_inbox();
  peers_.erase(peer);
  fences_[peer] = static_cast<unsigned>(rails_.size());
  for (auto& rail : rails_) {
    const auto found = rail.lanes.find(peer);
    if (found != rail.lanes.end()) {
      Lane& lane = found->second;
      for (auto& waiting : lane.messages) sent(waiting.id, kPeerLost);
      lane.messages.clear();
      for (Flow* flow : lane.flows) {
        flow->failed = true;
        flow->in_lane = false;
        if (flow->transfer->outcome.ok()) flow->transfer->outcome = kPeerLost;
        settle(*flow);
      }
      std::erase(rail.active, &lane);
      rail.lanes.erase(found);
    }
    rail.domain->disconnect(peer, lost);
  }
  wake_worker();
}

void Core::send(PeerNumber peer, TransferId id, std::string payload) {
  auto lock = enter();
  Rail& rail = rails_[way_to(peer, 0)];
  const auto found = rail.lanes.find(peer);
  if (found == rail.lanes.end()) return sent(id, kPeerLost);
  found->second.messages.push_back({id, std::move(payload)});
  activate(rail, found->second);
  wake_worker();
}

CoreStatistics Core::statistics() {
  auto lock = enter();
  CoreStatistics now = stats_;
  now.counts = counters_.memory()->counts.load(std::memory_order_relaxed);
  now.dropped = counters_.memory()->dropped.load(std::memory_order_relaxed);
  now.queued = transfers_.size();
  now.loop_passes = loop_passes_.load(std::memory_order_relaxed);
  now.handles = 0;
  for (auto& domain : domains_) now.handles += domain->handles();
  return now;
}

void Core::drain(std::vector<Event>& out, std::size_t limit) {
  auto& parked = counters_.memory()->parked;
  if (watch_) {
    const LoopWatch::Told told = watch_->take();
    if (told.doorbell) clear(counters_.doorbell().fd);
    if (told.arrival) see_to_arrivals();
  } else {
    clear(counters_.doorbell().fd);
  }
  if (options_.stepped) {
    struct Step {
      explicit Step(bool& on) : on(on) { on = true; }
      ~Step() { on = false; }
      bool& on;
    };
    {
      const Step step(stepping_);
      pass();
    }
    const std::lock_guard lock(mutex_);
    if (!look_ahead().idle()) wake_worker();
  }
  for (;;) {
    const bool all = events_.pop(out, limit) && counters_.harvest(out, limit);
    if (!all || out.size() >= limit) {  // the caller comes back by itself
      parked.store(0, std::memory_order_relaxed);
      return;
    }
    // Announce the parking, then look once more: whoever pushed before seeing the announcement did not ring.
    parked.store(1, std::memory_order_seq_cst);
    if (events_.empty() && !counters_.any_dirty()) return;
  }
}

// ------------------------------------------------------------------------------------------------- data path

// Null: there is nothing to move. Records are checked here, so that a bad batch starts nothing.
std::unique_ptr<Transfer> Core::assemble(TransferId id, const Run* runs, std::size_t n_runs, const Piece* pieces,
                                         std::size_t n_pieces) {
  std::unique_ptr<Transfer> transfer;
  if (spare_.empty()) {
    transfer = std::make_unique<Transfer>();
  } else {
    transfer = std::move(spare_.back());
    spare_.pop_back();
  }
  transfer->id = id;
  transfer->pieces.assign(pieces, pieces + n_pieces);
  for (std::size_t i = 0; i < n_runs; ++i) {
    const Run& run = runs[i];
    if (run.rail >= rails_.size() || std::uint64_t{run.first} + run.count > n_pieces) {
      throw Failure(Failure::Kind::usage, "post", "a run names a rail or pieces that do not exist");
    }
    if (run.after > i) throw Failure(Failure::Kind::usage, "post", "a run follows more runs than there are before it");
    if (run.count == 0) continue;
    Flow& flow = transfer->flows.emplace_back(Flow{transfer.get(), transfer->pieces.data() + run.first, run});
    auto before = std::next(transfer->flows.rbegin());
    for (std::size_t j = i; j-- > i - run.after;) {
      if (runs[j].count == 0) continue;  // it has no flow
      if (before->follower != nullptr) throw Failure(Failure::Kind::usage, "post", "two runs follow the same one");
      before->follower = &flow;
      ++before;
      ++flow.awaited;
    }
    flow.run.after = flow.awaited;
  }
  if (transfer->flows.empty()) return nullptr;
  transfer->unfinished = static_cast<std::uint32_t>(transfer->flows.size());
  for (const Piece& piece : transfer->pieces) transfer->nbytes += piece.nbytes;
  for (Flow& flow : transfer->flows) flow.batch_nbytes = transfer->nbytes;
  return transfer;
}

// Whether the calling thread may post so much itself.
bool Core::is_small(std::uint64_t nbytes, std::size_t pieces, const Run* runs, std::size_t n_runs) const {
  return std::all_of(runs, runs + n_runs, [&](const Run& run) {
    const auto& attributes = rails_[run.rail].domain->attributes();
    return nbytes <= attributes.inline_nbytes && pieces <= attributes.inline_pieces;
  });
}

bool Core::post(TransferId id, const Run* runs, std::size_t n_runs, const Piece* pieces, std::size_t n_pieces) {
  auto transfer = assemble(id, runs, n_runs, pieces, n_pieces);
  if (!transfer) return true;
  if (is_small(transfer->nbytes, n_pieces, runs, n_runs)) {
    std::unique_lock lock(mutex_, std::try_to_lock);
    if (lock.owns_lock()) {
      const bool done = post_inline(std::move(transfer));
      const bool look = !done && needs_a_look();
      lock.unlock();
      if (look) wake_worker();
      return done;
    }
  }
  {
    const std::lock_guard lock(inbox_mutex_);
    inbox_.push_back(std::move(transfer));
  }
  wake_worker();
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
    transfers.push_back(assemble(first + i, &run, 1, own, run.count));
    if (transfers.back()) nbytes += transfers.back()->nbytes;
  }
  std::vector<std::uint32_t> left;
  bool rung = true;
  bool look = true;
  std::unique_lock lock(mutex_, std::defer_lock);
  if (is_small(nbytes, n_pieces, runs, n_runs) && lock.try_lock()) {
    for (auto& domain : domains_) domain->hold_doorbells();
    for (std::uint32_t i = 0; i < n_runs; ++i) {
      if (transfers[i] && !post_inline(std::move(transfers[i]))) left.push_back(i);
    }
    for (auto& domain : domains_) rung &= domain->release_doorbells();
    look = !rung || (!left.empty() && needs_a_look());
    lock.unlock();
  } else {
    const std::lock_guard inbox(inbox_mutex_);
    for (std::uint32_t i = 0; i < n_runs; ++i) {
      if (!transfers[i]) continue;
      left.push_back(i);
      inbox_.push_back(std::move(transfers[i]));
    }
  }
  if (look) wake_worker();
  return left;
}

// Whether the worker has to see to what others have posted, now; or may well do so beside a loop that goes on posting.
bool Core::needs_a_look() const {
  if (transfers_.size() > kFewTransfers) return true;
  return std::ranges::any_of(rails_, [](const Rail& rail) {
    return !rail.active.empty() || !rail.domain->attributes().notifies_completions || rail.domain->needs_progress();
  });
}

// True: all of it is done and well. Otherwise it goes on, or has ended badly, and an event says so.
bool Core::post_inline(std::unique_ptr<Transfer> owned) {
  Transfer& transfer = *owned;
  transfer.posting = true;
  ++stats_.inline_batches;
  start(transfer);
  for (Flow& flow : transfer.flows) {
    Rail& rail = rails_[flow.run.rail];
    const auto found = rail.lanes.find(flow.run.peer);
    // Others wait there already: the worker takes them in turn. Or this one waits for those before it.
    if (!flow.in_lane || found == rail.lanes.end() || found->second.flows.size() != 1) continue;
    turn(rail, found->second, flow.run.count);
  }
  for (Flow& flow : transfer.flows) {
    if (!flow.in_lane) continue;
    Rail& rail = rails_[flow.run.rail];
    activate(rail, rail.lanes.at(flow.run.peer));
  }
  finish(transfer);
  transfer.posting = false;
  if (transfer.unfinished != 0) {
    transfers_.emplace(transfer.id, std::move(owned));
    return false;
  }
  const bool well = transfer.outcome.ok();
  if (spare_.size() < kSpareTransfers && transfer.pieces.capacity() <= kSparePieces) {
    transfer.flows.clear();
    transfer.nbytes = 0;
    transfer.outcome = {};
    spare_.push_back(std::move(owned));
  }
  return well;
}

void Core::admit(std::unique_ptr<Transfer> owned) {
  Transfer& transfer = *owned;
  transfers_.emplace(transfer.id, std::move(owned));
  start(transfer);
  finish(transfer);
}

// Its caller holds it by one flow more than it has, and lets go with finish(): a flow that fails at once must not end
// it under whoever walks over the others.
void Core::start(Transfer& transfer) {
  ++stats_.transfers;
  stats_.nbytes += transfer.nbytes;
  ++transfer.unfinished;
  for (Flow& flow : transfer.flows) {
    if (flow.run.after == 0) enqueue(flow);  // the others are when those before them have stopped
  }
}

// The rail that was planned, or the next one that reaches the peer.
std::uint16_t Core::way_to(PeerNumber peer, std::uint16_t rail) const noexcept {
  const std::size_t rails = rails_.size();
  for (std::size_t i = 0; i < rails && rails > 1; ++i) {
    const auto next = static_cast<std::uint16_t>((rail + i) % rails);
    if (rails_[next].domain->is_reachable(peer)) return next;
  }
  return rail;
}

void Core::enqueue(Flow& flow) {
  flow.run.rail = way_to(flow.run.peer, flow.run.rail);
  Rail& rail = rails_[flow.run.rail];
  const auto found = rail.lanes.find(flow.run.peer);
  Outcome& outcome = flow.transfer->outcome;
  if (outcome.ok() && found == rail.lanes.end()) outcome = kPeerLost;
  if (!outcome.ok()) {
    flow.failed = true;
    return settle(flow);
  }
  flow.in_lane = true;
  found->second.flows.push_back(&flow);
  if (!flow.transfer->posting) activate(rail, found->second);  // mostly it is gone before post_inline() returns
}

void Core::activate(Rail& rail, Lane& lane) {
  if (lane.queued) return;
  lane.queued = true;
  rail.active.push_back(&lane);
}

// One turn of one peer. Returns whether anything moved.
bool Core::turn(Rail& rail, Lane& lane, std::uint32_t budget) {
  bool moved = send_messages(rail, lane);
  while (budget > 0 && !lane.flows.empty()) {
    Flow& flow = *lane.flows.front();
    if (!flow.transfer->outcome.ok()) flow.failed = true;  // a sibling failed: post no more of it
    if (flow.next == 0 && flow.offset == 0 && !flow.failed && way_to(lane.peer, flow.run.rail) != flow.run.rail) {
      lane.flows.pop_front();
      flow.in_lane = false;
      moved = true;
      enqueue(flow);
      continue;
    }
    const std::uint32_t before = flow.next;
    const std::uint64_t offset = flow.offset;
    Posted posted = Posted::more;
    if (!flow.exhausted()) posted = rail.domain->post(flow, budget);
    const std::uint32_t accepted = flow.next - before;
    moved |= accepted != 0 || flow.offset != offset;
    if (flow.exhausted()) {
      lane.flows.pop_front();
      flow.in_lane = false;
      settle(flow);
      moved = true;
    }
    if (posted == Posted::full) break;
    // A domain that moved less than asked has had its share of bytes.
    if (accepted < budget && !lane.flows.empty() && lane.flows.front() == &flow) break;
    budget -= std::min(budget, std::max(accepted, 1u));
  }
  return moved;
}

bool Core::send_messages(Rail& rail, Lane& lane) {
  bool moved = false;
  while (!lane.messages.empty()) {
    const Message& head = lane.messages.front();
    if (rail.domain->send(lane.peer, head.id, head.payload) == Posted::full) break;
    lane.messages.pop_front();
    moved = true;
  }
  return moved;
}

bool Core::pump(Rail& rail) {
  bool moved = false;
  const std::uint32_t quantum = rail.domain->attributes().quantum;
  for (std::size_t left = rail.active.size(); left > 0 && !rail.active.empty(); --left) {
    Lane& lane = *rail.active.front();
    rail.active.pop_front();
    moved |= turn(rail, lane, quantum);
    tell(kBellDelay);
    if (lane.flows.empty() && lane.messages.empty()) {
      lane.queued = false;
    } else {
      rail.active.push_back(&lane);
    }
    if (callers_.load(std::memory_order_relaxed) != 0) return true;
  }
  return moved;
}

// A flow that nothing names any more is over, and whatever waited for it alone may start.
void Core::settle(Flow& flow) {
  if (flow.in_lane || flow.in_flight != 0 || !flow.exhausted()) return;
  if (flow.follower != nullptr && --flow.follower->awaited == 0) enqueue(*flow.follower);
  finish(*flow.transfer);
}

// A transfer is over with the last flow that may still move.
void Core::finish(Transfer& transfer) {
  if (--transfer.unfinished != 0) return;
  if (transfer.outcome.ok()) {
    if (transfer.posting) return;  // post() sees it and tells its caller at once
  } else {
    ++stats_.failed;
  }
  emit({EventKind::transfer, transfer.outcome.status, transfer.id, transfer.outcome.code,
        std::move(transfer.outcome.reason)});
  transfers_.erase(transfer.id);
}

void Core::take_inbox() {
  std::vector<std::unique_ptr<Transfer>> arrived;
  {
    const std::lock_guard lock(inbox_mutex_);
    arrived.swap(inbox_);
  }
  stats_.handed_over += arrived.size();
  for (auto& transfer : arrived) admit(std::move(transfer));
}

// ----------------------------------------------------------------------------------------------- what domains say

void Core::emit(Event event) {
  events_.push(std::move(event));
  if (!in_pass_) return counters_.doorbell().ring();
  if (!bell_due_) bell_due_ = Clock::now();
}

void Core::stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) {
  flow.in_flight -= pieces;
  if (outcome.ok()) {
    (flow.run.op == Op::write ? stats_.writes : stats_.reads) += pieces;
  } else {
    flow.failed = true;
    if (flow.transfer->outcome.ok()) flow.transfer->outcome = outcome;  // the first cause; siblings only follow it
  }
  settle(flow);
}

void Core::counted(std::uint32_t immediate) { counters_.add_immediate(immediate); }

void Core::message(PeerNumber peer, std::string payload) {
  emit({EventKind::message, Status::ok, peer, 0, std::move(payload)});
}

void Core::sent(TransferId message, const Outcome& outcome) {
  emit({outcome.ok() ? EventKind::sent : EventKind::transfer, outcome.status, message, outcome.code, outcome.reason});
}

void Core::released(RegionNumber region) {
  const auto found = releases_.find(region);
  if (found == releases_.end() || --found->second != 0) return;
  releases_.erase(found);
  emit({EventKind::released, Status::ok, region, 0, {}});
}

void Core::fenced(PeerNumber peer) {
  const auto found = fences_.find(peer);
  if (found == fences_.end() || --found->second != 0) return;
  fences_.erase(found);
  counters_.rescan();
  emit({EventKind::fenced, Status::ok, peer, 0, {}});
  ring(counters_.doorbell().fd);  // a peer may have died after it had taken our parking, and before it woke us
}

void Core::peer_failed(PeerNumber peer, const Outcome& outcome) {
  emit({EventKind::peer_failed, outcome.status, peer, outcome.code, outcome.reason});
}

// ---------------------------------------------------------------------------------------------------- the worker

void Core::wake_worker() noexcept {
  if (options_.stepped) return ring(wiring_.doorbell_fd);  // the loop is our worker
  // seq_cst pairs with park(): it announces its sleep, then looks at the inbox.
  if (asleep_.load(std::memory_order_seq_cst) && asleep_.exchange(false, std::memory_order_seq_cst)) {
    ring(wake_fd_.get());
  }
}

// With the lock held.
Core::Outlook Core::look_ahead() {
  Outlook ahead;
  {
    const std::lock_guard inbox(inbox_mutex_);
    ahead.work = !inbox_.empty();
  }
  for (Rail& rail : rails_) {
    const auto armed = rail.domain->arm();
    ahead.work |= !armed;
    if (armed) ahead.descriptors.insert(ahead.descriptors.end(), armed->begin(), armed->end());
    ahead.must_poll |= rail.domain->polled() || rail.domain->needs_progress() || !rail.active.empty();
  }
  ahead.must_poll |= events_waiting_;
  return ahead;
}

bool Core::pass() {
  const std::lock_guard lock(mutex_);
  in_pass_ = !options_.stepped;
  bool moved = false;
  take_inbox();
  for (Rail& rail : rails_) {
    moved |= rail.domain->progress();
    moved |= pump(rail);
  }
  if (events_waiting_ && !bell_due_) bell_due_ = Clock::now();  // what is moved on now was not there to be told of
  events_waiting_ = events_.flush();
  in_pass_ = false;
  const bool busy = moved && std::any_of(rails_.begin(), rails_.end(), [](auto& rail) { return !rail.active.empty(); });
  tell(busy ? kBellDelay : std::chrono::microseconds(0));
  return moved;
}

// On the loop's thread, which takes what is found here right after: what has come, and nothing that waits to leave.
void Core::see_to_arrivals() {
  const std::unique_lock lock(mutex_, std::try_to_lock);
  if (!lock || !asleep_.load(std::memory_order_relaxed)) return;  // the worker does
  if (transfers_.size() > kFewTransfers) return wake_worker();
  const auto begun = Clock::now();
  counters_.memory()->parked.store(0, std::memory_order_relaxed);  // nobody needs to ring
  in_pass_ = true;
  bool moved = false;
  for (Rail& rail : rails_) moved |= rail.domain->progress();
  events_waiting_ = events_.flush();
  in_pass_ = false;
  bell_due_.reset();
  if (moved) loop_passes_.fetch_add(1, std::memory_order_relaxed);
  const bool brief = Clock::now() - begun < kBrief;
  // Nor is it worth it where the loop learns nothing.
  if (!brief || (events_.empty() && !counters_.any_dirty())) unshared_ = kUnshared;
  const Outlook ahead = look_ahead();
  if (unshared_ != 0 || !ahead.idle()) return wake_worker();
  watch_->arm(ahead.descriptors);
}

// Rings for events that have been told to nobody for `at_least`.
void Core::tell(std::chrono::microseconds at_least) {
  if (!bell_due_ || (at_least.count() > 0 && Clock::now() - *bell_due_ < at_least)) return;
  bell_due_.reset();
  counters_.doorbell().ring();
}

void Core::run() noexcept {
  ::pthread_setname_np(::pthread_self(), "aio-transfer");
  if (!options_.cpus.empty()) {
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    for (const int cpu : options_.cpus) CPU_SET(cpu, &cpus);
    // Refused where a container has none of them: then it runs where it is let.
    ::pthread_setaffinity_np(::pthread_self(), sizeof cpus, &cpus);
  }
  const bool spins = options_.always_spin && std::any_of(domains_.begin(), domains_.end(),
                                                         [](auto& domain) { return domain->benefits_from_spinning(); });
  unsigned idle_rounds = 0;
  auto idle_since = Clock::now();
  while (!stop_.load(std::memory_order_relaxed)) {
    if (pass()) {
      idle_rounds = 0;
      // A caller waits for the lock: without this the worker, already running, takes it again first.
      while (callers_.load(std::memory_order_relaxed) != 0) std::this_thread::yield();
      continue;
    }
    if (idle_rounds == 0) idle_since = Clock::now();
    ++idle_rounds;
    if (spins || (options_.spin.count() > 0 && Clock::now() - idle_since < options_.spin)) {
      std::this_thread::yield();
      continue;
    }
    park(idle_rounds);
  }
}

void Core::park(unsigned idle_rounds) {
  asleep_.store(true, std::memory_order_seq_cst);
  Outlook ahead;
  bool shared = false;  // the loop is told of arrivals too
  std::uint64_t loop_passes = 0;
  {
    const std::lock_guard lock(mutex_);
    ahead = look_ahead();
    if (ahead.work || stop_.load(std::memory_order_seq_cst)) {
      asleep_.store(false, std::memory_order_relaxed);
      return;
    }
    if (watch_ && !ahead.must_poll) {
      shared = unshared_ == 0 && transfers_.size() <= kFewTransfers;
      if (shared) watch_->arm(ahead.descriptors);
      unshared_ -= std::min(unshared_, 1u);
    }
    loop_passes = loop_passes_.load(std::memory_order_relaxed);
  }
  std::vector<pollfd> fds{{wake_fd_.get(), POLLIN, 0}};
  for (const int fd : ahead.descriptors) fds.push_back({fd, POLLIN, 0});
  const bool behind = shared && loop_leads_;
  // Back off from 50 us to 1 ms: at the bottom a polled transport costs less than 1 % of a core when idle.
  const std::int64_t backoff_ns = std::min<std::int64_t>(50'000ll << std::min(idle_rounds, 8u), 1'000'000);
  const timespec backoff{0, backoff_ns};
  ::ppoll(fds.data(), behind ? 1 : fds.size(), ahead.must_poll ? &backoff : behind ? &kBehind : nullptr, nullptr);
  if (shared && !behind && fds.front().revents == 0) ::ppoll(fds.data(), 1, &kHeadStart, nullptr);
  if (drop_dead(fds)) ::ppoll(fds.data(), fds.size(), &kBesideTheDead, nullptr);
  asleep_.store(false, std::memory_order_seq_cst);
  const bool asked = fds.front().revents != 0;
  const bool led = loop_passes_.load(std::memory_order_relaxed) != loop_passes;
  if (led || !asked) loop_leads_ = led;
  if (asked) clear(wake_fd_.get());
  if (shared && !behind && !asked && !led) {  // the loop has something else to do
    const std::lock_guard lock(mutex_);
    unshared_ = kUnshared;
  }
}

}  // namespace aio
