// One host's memory as a Domain: a write is one copy by the sender, straight into the target.
#pragma once

#include <chrono>
#include <memory>
#include <unordered_map>
#include <vector>

#include "../core/counters.h"
#include "../core/domain.h"
#include "../core/reaper.h"
#include "segment.h"
#include "trial.h"

namespace aio::shm {

class ShmDomain final : public Domain {
 public:
  ShmDomain(Sink& sink, std::shared_ptr<OwnSegment> segment);
  ~ShmDomain() override;

  [[nodiscard]] const DomainAttributes& attributes() const noexcept override { return attributes_; }
  std::string register_local(RegionNumber region, const LocalMemory& memory) override;
  void register_remote(RegionNumber region, const RemoteMemory& memory) override;
  void deregister(RegionNumber region) override;
  Endpoint connect(PeerNumber peer, const std::optional<Endpoint>& remote) override;
  void disconnect(PeerNumber peer, bool lost) override;
  Posted post(Flow& flow, std::uint32_t budget) override;
  Posted send(PeerNumber peer, TransferId message, const std::string& payload) override;
  void hold_doorbells() override { bells_.holding = true; }
  bool release_doorbells() override;
  bool progress() override;
  // What comes in is counted by the peer; whoever waits for that looks at the counter itself.
  [[nodiscard]] bool benefits_from_spinning() const noexcept override { return false; }
  [[nodiscard]] bool needs_progress() const noexcept override;
  std::optional<std::vector<int>> arm() override;
  [[nodiscard]] std::uint64_t handles() const noexcept override;

 private:
  struct Link {                  // a peer, seen from here
    PeerSlot* mine = nullptr;    // its slot in our segment: how we fence it
    PeerSlot* theirs = nullptr;  // our slot in its segment: how it fences us
    std::uint64_t my_nonce = 0;
    std::uint64_t their_nonce = 0;
    Segment* segment = nullptr;  // null until connected
    CounterTable counters;
    Mapping mapping;
    Fd doorbell;
    Fd process;
    int pid = 0;
  };
  struct Local {
    std::uint64_t addr, nbytes;
    std::uint32_t slot;
  };
  struct Remote {
    PeerNumber peer = 0;
    std::uint32_t slot = 0, generation = 0;
    std::uint64_t nbytes = 0, addr = 0;
    Mapping mapping;  // empty: memory that is not an engine's, reached by process_vm_writev
  };
  struct Fence {
    PeerNumber peer;
    PeerSlot* slot;
    std::uint64_t nonce;
    Fd process;
    std::chrono::steady_clock::time_point since;
  };
  struct Section;  // post() in domain.cpp

  [[nodiscard]] bool held(std::uint32_t region_slot) const noexcept;
  PeerSlot* take_slot(std::uint64_t nonce);
  void sweep();
  Outcome enter(const Link& link, const Remote* remote) const noexcept;
  static void copy_whole(Section& section, const Remote& remote, bool streams) noexcept;
  Outcome copy(Section& section, const Link& link, const Remote& remote);
  Outcome copy_process(Section& section, const Link& link, const Remote& remote);

  Sink& sink_;
  std::shared_ptr<OwnSegment> segment_;
  DomainAttributes attributes_;
  HeldBells bells_;
  Trial trial_;
  std::unordered_map<PeerNumber, Link> links_;
  std::unordered_map<RegionNumber, Local> locals_;
  std::unordered_map<RegionNumber, Remote> remotes_;
  std::vector<std::uint32_t> free_regions_;
  std::vector<std::uint32_t> generations_;
  std::vector<std::pair<RegionNumber, std::uint32_t>> releasing_;  // waiting for a writer to leave its section
  std::vector<Fence> fencing_;
  std::vector<Fence> retired_;  // fenced, but the peer may still hold its slot
  std::uint64_t nonce_ = 0;
  Reaper reaper_;
};

}  // namespace aio::shm
