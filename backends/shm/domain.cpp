#include "domain.h"

namespace aio::shm {

namespace {

// Handing a batch to the worker costs 18 us more per submit and a wake-up of the loop; streams gain by it from 128 to
// 256 KiB on (benchmarks/log.md).
constexpr std::uint64_t kInlineNbytes = 128 << 10;
constexpr std::uint32_t kInlinePieces = 256;

}  // namespace

ShmDomain::ShmDomain(Sink& sink, std::shared_ptr<OwnSegment> segment)
    : sink_(sink), segment_(std::move(segment)), generations_(kRegionSlots, 0) {
  attributes_.name = "memory";
  attributes_.provider = "memfd";
  attributes_.protocol = "memcpy into the peer's mapped memory; process_vm_writev into other memory";
  attributes_.preference = 400;
  attributes_.same_host = true;
  attributes_.grants = true;
  attributes_.inline_nbytes = kInlineNbytes;
  attributes_.inline_pieces = kInlinePieces;
  attributes_.quantum = 256;
  free_regions_.reserve(kRegionSlots);
  for (std::uint32_t slot = kRegionSlots; slot-- > 0;) free_regions_.push_back(slot);
}

ShmDomain::~ShmDomain() {
  doorbells_.ring_all();
  // Peers still map our memory, which must not be used any more: seq_cst, so that they see it before their next section
  // (wire.h).
  Segment& own = *segment_->get();
  for (auto& [number, region] : local_regions_) own.regions[region.slot].store(0, std::memory_order_seq_cst);
  for (auto& [number, peer] : peers_) {
    if (peer.mine != nullptr) peer.mine->revoked.store(1, std::memory_order_seq_cst);
    if (peer.theirs != nullptr) peer.theirs->step(peer.their_nonce, SlotState::joined, SlotState::left);
  }
}

std::uint64_t ShmDomain::handles() const noexcept {
  return peers_.size() + local_regions_.size() + remote_regions_.size() + releasing_.size() + fencing_.size() +
         retired_.size();
}

}  // namespace aio::shm
