// Baseline over a network: a backend's Domain, driven by one thread that does nothing else. No core, no event loop.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../../../backends/core/domain.h"
#include "baseline.h"

namespace aio::baseline {

// One rail to one peer, which has one rail too. Each offers the other one block of memory.
class Rail final : private Sink {
 public:
  // Backend: one that is built into this module and reaches its peers by a network ("libfabric", "tcp", "verbs"), with
  // its options. `block`: wait on the transport's descriptors when idle, where it has any, instead of polling.
  Rail(const std::string& backend, const std::map<std::string, std::string>& options, bool block, std::uint64_t addr,
       std::uint64_t nbytes);
  ~Rail();

  // Returns what the peer's join() takes: our end, and the key of our memory.
  [[nodiscard]] std::pair<std::string, std::string> offer();
  void join(const std::string& end, const std::string& key, std::uint64_t nbytes);
  // Makes progress in a thread of its own, as the target of writes must.
  void serve();
  void stop();
  // Writes chunk i from sources[i] (an address) to targets[i] (an offset in the peer's memory), with `depth` batches in
  // flight. Returns the nanoseconds of each, from its first post to its last completion. Throws std::runtime_error.
  Times write(const Batch& batch, unsigned rounds, unsigned depth, std::int64_t* elapsed);
  // Sends a word and one back, each with an immediate: one end begins, the other answers. Returns the nanoseconds of
  // each round trip, at the end that begins.
  Times exchange(unsigned rounds, bool begins);

 private:
  void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) override;
  void counted(std::uint32_t) override { ++arrived_; }
  void message(PeerNumber, std::string) override {}
  void sent(TransferId, const Outcome&) override {}
  void released(RegionNumber) override {}
  void fenced(PeerNumber) override {}
  void peer_failed(PeerNumber, const Outcome& outcome) override { failure_ = outcome.reason + " "; }
  void wait();
  void check() const;

  bool block_;
  unsigned spins_ = 0;
  std::uint64_t addr_;
  std::string failure_;
  unsigned arrived_ = 0;  // immediates of an exchange that are not answered yet
  std::string key_;
  std::unique_ptr<Domain> domain_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace aio::baseline
