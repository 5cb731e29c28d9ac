// Test harness for a domain without the core: checks that are counted, a sink that records, and flows that are posted
// as the core posts them.
#pragma once

#include <poll.h>

#include <chrono>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../backends/core/domain.h"

namespace harness {

using namespace aio;
using Clock = std::chrono::steady_clock;

inline int failures = 0;

#define CHECK(condition)                                                   \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::printf("  FAILED %s:%d: %s\n", __FILE__, __LINE__, #condition); \
      ++harness::failures;                                                 \
    }                                                                      \
  } while (false)

struct FakeSink final : Sink {
  std::vector<std::uint32_t> counts;              // as they came
  std::map<std::uint32_t, std::uint64_t> totals;  // of each counter
  std::vector<std::pair<PeerNumber, std::string>> messages;
  std::map<TransferId, Outcome> sents;
  std::vector<RegionNumber> releases;
  std::vector<PeerNumber> fences, failed_peers;
  std::vector<Outcome> broken, failures_seen;  // of peers, of pieces
  std::uint64_t stops = 0;
  std::uint64_t failed_pieces = 0;

  void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) override {
    flow.in_flight -= pieces;
    stops += pieces;
    if (!outcome.ok()) {
      flow.failed = true;
      failed_pieces += pieces;
      failures_seen.push_back(outcome);
    }
  }
  void counted(std::uint32_t immediate) override {
    counts.push_back(immediate);
    totals[immediate & 0xFFFFFF] += (immediate >> 24) + 1;
  }
  void message(PeerNumber peer, std::string payload) override { messages.emplace_back(peer, std::move(payload)); }
  void sent(TransferId message, const Outcome& outcome) override { sents[message] = outcome; }
  void released(RegionNumber region) override { releases.push_back(region); }
  void fenced(PeerNumber peer) override { fences.push_back(peer); }
  void peer_failed(PeerNumber peer, const Outcome& outcome) override {
    failed_peers.push_back(peer);
    broken.push_back(outcome);
  }
};

struct Node {
  FakeSink sink;
  std::unique_ptr<Domain> domain;
  std::uint32_t budget = 32;  // pieces per post
};

inline bool drive(const std::vector<Node*>& nodes, const std::function<bool()>& done, double seconds = 10) {
  const auto until = Clock::now() + std::chrono::duration<double>(seconds);
  while (!done()) {
    bool moved = false;
    for (Node* node : nodes) moved |= node->domain->progress();
    if (Clock::now() > until) return false;
    if (!moved) ::poll(nullptr, 0, 0);
  }
  return true;
}

inline void drive_for(const std::vector<Node*>& nodes, double seconds) {
  drive(nodes, [] { return false; }, seconds);
}

struct Memory {
  std::vector<std::uint8_t> bytes;
  RegionNumber number;
  std::string key;

  Memory(Node& node, RegionNumber number, std::size_t nbytes,
         unsigned access = access_remote_read | access_remote_write, std::uint8_t content = 0)
      : bytes(nbytes, content), number(number) {
    key = node.domain->register_local(number, {address(), nbytes, access, -1, 0});
  }
  [[nodiscard]] std::uint64_t address() const { return reinterpret_cast<std::uint64_t>(bytes.data()); }
};

struct Batch {
  std::vector<Piece> pieces;
  Flow flow;

  Batch(std::vector<Piece> which, PeerNumber peer, RegionNumber local, RegionNumber remote, Op op = Op::write)
      : pieces(std::move(which)),
        flow{nullptr, pieces.data(), {peer, 0, op, local, remote, 0, static_cast<std::uint32_t>(pieces.size()), 0}} {}
  [[nodiscard]] bool over() const { return flow.exhausted() && flow.in_flight == 0; }
};

// Posts as the core would: some at a time, again after progress when full.
inline bool run(const std::vector<Node*>& nodes, Node& from, Batch& batch, double seconds = 20) {
  return drive(
      nodes,
      [&] {
        if (!batch.flow.exhausted()) from.domain->post(batch.flow, from.budget);
        return batch.over();
      },
      seconds);
}

inline void join(Node& a, Node& b, PeerNumber b_at_a, PeerNumber a_at_b) {
  const Endpoint ea = a.domain->connect(b_at_a, std::nullopt);
  const Endpoint eb = b.domain->connect(a_at_b, std::nullopt);
  a.domain->connect(b_at_a, eb);
  b.domain->connect(a_at_b, ea);
}

}  // namespace harness
