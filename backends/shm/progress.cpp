// Progress: slots of disconnected peers, regions that a writer still uses, doorbells that were held.
#include <algorithm>
#include <chrono>

#include "domain.h"

namespace aio::shm {

namespace {

// Waking our own worker takes as long as waking a peer: up to so many, the caller rings itself.
constexpr std::size_t kDoorbellsOfCaller = 4;

}  // namespace

// A slot may serve another peer only when its old one can no longer store to it: a frozen peer keeps its slot.
void ShmDomain::free_revoked_slots() {
  std::erase_if(retired_, [](const RevokedSlot& revoked) {
    // acquire pairs with the peer's last step: every store of its sections comes before the slot's next use.
    const std::uint64_t word = revoked.slot->word.load(std::memory_order_acquire);
    if (word != PeerSlot::pack(revoked.nonce, SlotState::left) && !has_exited(revoked.process)) return false;
    revoked.slot->word.store(0, std::memory_order_release);
    return true;
  });
}

bool ShmDomain::needs_progress() const noexcept {
  // A peer that leaves does so within moments of us; one that does not keeps its slot until its process exits.
  constexpr auto kLeaving = std::chrono::seconds(5);
  return !releasing_.empty() || !fencing_.empty() ||
         (!retired_.empty() && std::chrono::steady_clock::now() - retired_.back().since < kLeaving);
}

std::optional<std::vector<int>> ShmDomain::arm() {
  if (!doorbells_.bells.empty()) return std::nullopt;
  std::vector<int> processes;  // pidfds: when such a process exits, a slot or a region becomes free
  for (const auto* list : {&fencing_, &retired_}) {
    for (const RevokedSlot& revoked : *list) {
      if (revoked.process) processes.push_back(revoked.process.get());
    }
  }
  return processes;
}

bool ShmDomain::release_doorbells() {
  doorbells_.holding = false;
  if (doorbells_.bells.size() <= kDoorbellsOfCaller) doorbells_.ring_all();
  return doorbells_.bells.empty();
}

bool ShmDomain::progress() {
  bool moved = !doorbells_.bells.empty();
  doorbells_.ring_all();
  std::erase_if(releasing_, [&](const auto& entry) {
    if (is_in_use(entry.second)) return false;
    // At the front: the slot that was unused for longest is taken next, so that generations last.
    free_regions_.insert(free_regions_.begin(), entry.second);
    sink_.released(entry.first);
    return moved = true;
  });
  std::erase_if(fencing_, [&](RevokedSlot& revoked) {
    // seq_cst: after `revoked` was stored, against a writer's exchange of `busy` (wire.h).
    if (revoked.slot->busy.load(std::memory_order_seq_cst) != 0 && !has_exited(revoked.process)) return false;
    sink_.fenced(revoked.peer);
    retired_.push_back(std::move(revoked));
    return moved = true;
  });
  free_revoked_slots();
  return moved;
}

}  // namespace aio::shm
