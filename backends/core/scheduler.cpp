#include "scheduler.h"

#include <algorithm>

namespace aio {

namespace {

const Outcome kPeerLost{Status::peer_lost, 0, "the connection is closed"};

}  // namespace

// Keeps a transfer from ending while its flows are walked over: one that fails at once, being the last, would end it
// and free the others. Counts as one more flow.
class Scheduler::Hold {
 public:
  // `in_post`: the caller owns the transfer and returns its success itself, for as long as it holds it.
  Hold(Scheduler& scheduler, Transfer& transfer, bool in_post) noexcept
      : scheduler_(scheduler), transfer_(transfer), in_post_(in_post) {
    ++transfer.unfinished;
    transfer.in_post = in_post;
  }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  ~Hold() {
    scheduler_.release(transfer_);
    if (in_post_) transfer_.in_post = false;  // otherwise release() may have freed it
  }

 private:
  Scheduler& scheduler_;
  Transfer& transfer_;
  const bool in_post_;
};

void Scheduler::add_peer(PeerNumber peer) {
  for (Rail& rail : rails_) rail.lanes.try_emplace(peer).first->second.peer = peer;
}

void Scheduler::remove_peer(PeerNumber peer, bool lost) {
  for (Rail& rail : rails_) {
    const auto found = rail.lanes.find(peer);
    if (found != rail.lanes.end()) {
      Lane& lane = found->second;
      for (const Message& message : lane.messages) sent(message.id, kPeerLost);
      lane.messages.clear();
      for (Flow* flow : lane.flows) {
        flow->failed = true;
        flow->in_lane = false;
        if (flow->transfer->outcome.ok()) flow->transfer->outcome = kPeerLost;
        retire_if_stopped(*flow);
      }
      std::erase(rail.active, &lane);
      rail.lanes.erase(found);
    }
    rail.domain->disconnect(peer, lost);
  }
}

// ------------------------------------------------------------------------------------------------ into the lanes

std::unique_ptr<Transfer> Scheduler::post_inline(std::unique_ptr<Transfer> owned) {
  Transfer& transfer = *owned;
  {
    const Hold hold(*this, transfer, true);
    ++statistics_.inline_batches;
    start(transfer);
    for (Flow& flow : transfer.flows) {
      Rail& rail = rails_[flow.run.rail];
      const auto found = rail.lanes.find(flow.run.peer);
      // Flows of others wait there already: the worker serves them in turn. Or this one waits for its predecessors.
      if (!flow.in_lane || found == rail.lanes.end() || found->second.flows.size() != 1) continue;
      serve_lane(rail, found->second, flow.run.count);
    }
    for (Flow& flow : transfer.flows) {
      if (!flow.in_lane) continue;
      Rail& rail = rails_[flow.run.rail];
      activate(rail, rail.lanes.at(flow.run.peer));
    }
  }
  if (transfer.unfinished == 0) return transfer.outcome.ok() ? std::move(owned) : nullptr;
  transfers_.emplace(transfer.id, std::move(owned));
  return nullptr;
}

void Scheduler::admit(std::vector<std::unique_ptr<Transfer>> transfers) {
  statistics_.handed_over += transfers.size();
  for (auto& owned : transfers) {
    Transfer& transfer = *owned;
    transfers_.emplace(transfer.id, std::move(owned));
    const Hold hold(*this, transfer, false);
    start(transfer);
  }
}

void Scheduler::send(PeerNumber peer, TransferId id, std::string payload) {
  Rail& rail = rails_[select_rail(peer, 0)];
  const auto found = rail.lanes.find(peer);
  if (found == rail.lanes.end()) return sent(id, kPeerLost);
  found->second.messages.push_back({id, std::move(payload)});
  activate(rail, found->second);
}

// Its caller holds the transfer.
void Scheduler::start(Transfer& transfer) {
  ++statistics_.transfers;
  statistics_.nbytes += transfer.nbytes;
  for (Flow& flow : transfer.flows) {
    if (flow.run.after == 0) enqueue(flow);  // others are enqueued when their predecessors have stopped
  }
}

// The rail that was planned, or the next one by which the peer is reachable.
std::uint16_t Scheduler::select_rail(PeerNumber peer, std::uint16_t planned) const noexcept {
  const std::size_t rails = rails_.size();
  for (std::size_t i = 0; i < rails && rails > 1; ++i) {
    const auto next = static_cast<std::uint16_t>((planned + i) % rails);
    if (rails_[next].domain->is_reachable(peer)) return next;
  }
  return planned;
}

void Scheduler::enqueue(Flow& flow) {
  flow.run.rail = select_rail(flow.run.peer, flow.run.rail);
  Rail& rail = rails_[flow.run.rail];
  const auto found = rail.lanes.find(flow.run.peer);
  Outcome& outcome = flow.transfer->outcome;
  if (outcome.ok() && found == rail.lanes.end()) outcome = kPeerLost;
  if (!outcome.ok()) {
    flow.failed = true;
    return retire_if_stopped(flow);
  }
  flow.in_lane = true;
  found->second.flows.push_back(&flow);
  if (!flow.transfer->in_post) activate(rail, found->second);  // mostly it is gone before post_inline() returns
}

void Scheduler::activate(Rail& rail, Lane& lane) {
  if (lane.queued) return;
  lane.queued = true;
  rail.active.push_back(&lane);
}

// ---------------------------------------------------------------------------------------------- out of the lanes

// One turn of one peer: at most `budget` pieces. Returns whether anything moved.
bool Scheduler::serve_lane(Rail& rail, Lane& lane, std::uint32_t budget) {
  bool moved = send_messages(rail, lane);
  while (budget > 0 && !lane.flows.empty()) {
    Flow& flow = *lane.flows.front();
    if (!flow.transfer->outcome.ok()) flow.failed = true;  // a sibling failed: post no more of it
    if (flow.next == 0 && flow.offset == 0 && !flow.failed && select_rail(lane.peer, flow.run.rail) != flow.run.rail) {
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
      retire_if_stopped(flow);
      moved = true;
    }
    if (posted == Posted::full) break;
    // A domain that accepted less than the budget has moved its share of bytes for this turn.
    if (accepted < budget && !lane.flows.empty() && lane.flows.front() == &flow) break;
    budget -= std::min(budget, std::max(accepted, 1u));
  }
  return moved;
}

bool Scheduler::send_messages(Rail& rail, Lane& lane) {
  bool moved = false;
  while (!lane.messages.empty()) {
    const Message& head = lane.messages.front();
    if (rail.domain->send(lane.peer, head.id, head.payload) == Posted::full) break;
    lane.messages.pop_front();
    moved = true;
  }
  return moved;
}

bool Scheduler::needs_worker() const {
  if (transfers_.size() > kMaxTransfersOfLoop) return true;
  return std::ranges::any_of(rails_, [](const Rail& rail) {
    return !rail.active.empty() || !rail.domain->attributes().notifies_completions || rail.domain->needs_progress();
  });
}

// ------------------------------------------------------------------------------------------------------ ends

void Scheduler::stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) {
  flow.in_flight -= pieces;
  if (outcome.ok()) {
    (flow.run.op == Op::write ? statistics_.writes : statistics_.reads) += pieces;
  } else {
    flow.failed = true;
    if (flow.transfer->outcome.ok()) flow.transfer->outcome = outcome;  // the first cause; siblings only follow it
  }
  retire_if_stopped(flow);
}

void Scheduler::sent(TransferId message, const Outcome& outcome) {
  events_.emit(
      {outcome.ok() ? EventKind::sent : EventKind::transfer, outcome.status, message, outcome.code, outcome.reason});
}

// A flow that no lane and no domain refers to any more has ended, and a successor that waited for it alone may start.
void Scheduler::retire_if_stopped(Flow& flow) {
  if (flow.in_lane || flow.in_flight != 0 || !flow.exhausted()) return;
  if (flow.successor != nullptr && --flow.successor->predecessors == 0) enqueue(*flow.successor);
  release(*flow.transfer);
}

// One flow, or hold, less. With the last one the transfer ends, and is freed unless its caller owns it.
void Scheduler::release(Transfer& transfer) {
  if (--transfer.unfinished != 0) return;
  if (transfer.outcome.ok()) {
    if (transfer.in_post) return;  // post() returns it
  } else {
    ++statistics_.failed;
  }
  events_.emit({EventKind::transfer, transfer.outcome.status, transfer.id, transfer.outcome.code,
                std::move(transfer.outcome.reason)});
  transfers_.erase(transfer.id);
}

}  // namespace aio
