// Regions: registered in our segment's table, or mapped from a peer's memfd.
#include <sys/prctl.h>

#include <algorithm>
#include <cerrno>

#include "domain.h"

namespace aio::shm {

namespace {

constexpr std::uint64_t kPageNbytes = 4096;

}  // namespace

std::string ShmDomain::register_local(RegionNumber number, const LocalMemory& memory) {
  if (free_regions_.empty()) throw Failure(Failure::Kind::provider, "register", "65536 regions are registered", ENOSPC);
  const std::uint32_t slot = free_regions_.back();
  free_regions_.pop_back();
  const std::uint32_t generation = ++generations_[slot] == 0 ? ++generations_[slot] : generations_[slot];
  local_regions_.emplace(number, LocalRegion{memory.addr, memory.nbytes, slot});
  // seq_cst as every store to the table (wire.h).
  if (memory.access != 0) segment_->get()->regions[slot].store(generation, std::memory_order_seq_cst);
  if (memory.fd < 0 && memory.access != 0) {
    // Where Yama restricts ptrace, only this lets a peer of the same user reach memory that is not in a memfd. EINVAL
    // where there is no Yama.
    ::prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
  }
  return to_bytes(
      RegionKey{slot, generation, memory.fd >= 0 ? 1u : 0u, 1, memory.fd_offset, memory.addr, memory.nbytes});
}

void ShmDomain::register_remote(RegionNumber number, const RemoteMemory& memory) {
  const auto key = from_bytes<RegionKey>(memory.keys, "region key");
  if (key.slot >= kRegionSlots || key.generation == 0 || key.nbytes != memory.nbytes || key.version != 1) {
    throw Failure(Failure::Kind::usage, "region key", "its fields contradict each other");
  }
  const auto peer = peers_.find(memory.peer);
  if (peer == peers_.end() || peer->second.segment == nullptr) {
    throw Failure(Failure::Kind::usage, "register", "the peer is not connected");
  }
  if (peer->second.segment->regions[key.slot].load(std::memory_order_seq_cst) != key.generation) {
    throw Failure(Failure::Kind::stale, "region", "its owner has deregistered it");
  }
  RemoteRegion region{memory.peer, key.slot, key.generation, memory.nbytes, key.addr, {}};
  if (key.has_fd != 0) {
    if (memory.fds.size() != 1) throw Failure(Failure::Kind::usage, "register", "the grant brought no memory");
    const std::uint64_t lead = key.fd_offset % kPageNbytes;
    region.mapping = map_sealed(memory.fds.front(), key.fd_offset - lead, memory.nbytes + lead, true, "region");
    region.addr = reinterpret_cast<std::uint64_t>(region.mapping.base()) + lead;
  }
  remote_regions_.insert_or_assign(number, std::move(region));
}

// Whether a writer that has not exited is in a section of this region.
bool ShmDomain::is_in_use(std::uint32_t region_slot) const noexcept {
  const auto uses = [&](const PeerSlot* slot, const Fd& process) {
    // seq_cst: after the region was marked dead, and against a writer's exchange of `busy` (wire.h).
    return slot != nullptr && slot->busy.load(std::memory_order_seq_cst) == region_slot + 1 && !has_exited(process);
  };
  const auto peer_uses = [&](const auto& entry) { return uses(entry.second.mine, entry.second.process); };
  const auto revoked_uses = [&](const RevokedSlot& revoked) { return uses(revoked.slot, revoked.process); };
  return std::ranges::any_of(peers_, peer_uses) || std::ranges::any_of(fencing_, revoked_uses);
}

void ShmDomain::deregister(RegionNumber number) {
  if (const auto remote = remote_regions_.find(number); remote != remote_regions_.end()) {
    unmapper_.take(std::move(remote->second.mapping));
    remote_regions_.erase(remote);
    return;
  }
  const auto found = local_regions_.find(number);
  if (found == local_regions_.end()) return;
  const std::uint32_t slot = found->second.slot;
  local_regions_.erase(found);
  segment_->get()->regions[slot].store(0, std::memory_order_seq_cst);  // before `busy` is loaded (wire.h)
  releasing_.emplace_back(number, slot);
  progress();
}

}  // namespace aio::shm
