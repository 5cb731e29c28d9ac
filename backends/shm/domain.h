// The shm Domain: one host's memory. A write is one copy by the sender, straight into the target. Its methods are
// spread over domain.cpp (opening, attributes), memory.cpp (regions), connection.cpp (peers and their slots), post.cpp
// (what the core posts) and progress.cpp (fences, releases, doorbells).
#pragma once

#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "../core/background_unmapper.h"
#include "../core/counters.h"
#include "../core/domain.h"
#include "connection.h"
#include "copy_tuner.h"
#include "memory.h"
#include "segment.h"

namespace aio::shm {

class ShmDomain final : public Domain {
 public:
  ShmDomain(Sink& sink, std::shared_ptr<OwnSegment> segment);
  ~ShmDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber number, const std::optional<Endpoint>& remote) override;
  void disconnect(PeerNumber number, bool lost) override;
  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber number, TransferId message, const std::string& payload) override;
  void hold_doorbells() override { doorbells_.holding = true; }
  bool release_doorbells() override;
  bool progress() override;
  // The peer raises our counters; an event loop that waits for them polls the counter itself.
  [[nodiscard]] bool benefits_from_spinning() const noexcept override { return false; }
  [[nodiscard]] bool needs_progress() const noexcept override;
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override;

 private:
  struct Section;  // post.cpp

  // memory.cpp
  [[nodiscard]] bool is_in_use(std::uint32_t region_slot) const noexcept;

  // connection.cpp
  PeerSlot* take_slot(std::uint64_t nonce);
  void join(Peer& peer, const Endpoint& remote);

  // post.cpp
  void fail_next(Flow& flow, const Outcome& outcome);
  Outcome copy_section(Section& section, Peer& peer, const RemoteRegion* remote);
  static Outcome begin_section(const Peer& peer, const RemoteRegion* remote) noexcept;
  static void copy_whole_pieces(Section& section, const RemoteRegion& remote, bool nontemporal) noexcept;
  Outcome copy_mapped(Section& section, const RemoteRegion& remote);
  static Outcome copy_by_process(Section& section, const Peer& peer, const RemoteRegion& remote);

  // progress.cpp
  void free_revoked_slots();

  Sink& sink_;
  std::shared_ptr<OwnSegment> segment_;
  DomainAttributes attributes_;
  DeferredDoorbells doorbells_;
  CopyTuner copy_tuner_;
  std::unordered_map<PeerNumber, Peer> peers_;
  std::unordered_map<RegionNumber, LocalRegion> local_regions_;
  std::unordered_map<RegionNumber, RemoteRegion> remote_regions_;
  std::vector<std::uint32_t> free_regions_;
  std::vector<std::uint32_t> generations_;
  std::vector<std::pair<RegionNumber, std::uint32_t>> releasing_;  // until the writer in it has left its section
  std::vector<RevokedSlot> fencing_;                               // until the writer has left its section
  std::vector<RevokedSlot> retired_;                               // fenced, but the peer may still hold its slot
  std::uint64_t nonce_ = 0;
  BackgroundUnmapper unmapper_;
};

}  // namespace aio::shm
