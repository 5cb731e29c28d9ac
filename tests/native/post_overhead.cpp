// Measures what a page costs in our domain beyond the provider: the same writes are posted by FabricDomain and by a
// minimal loop, to one peer, and in both only the time outside of the provider's functions counts.
//   g++ -std=c++20 -O3 backends/libfabric/*.cpp backends/core/native_backend.cpp tests/native/post_overhead.cpp -ldl
//       -o post_overhead
//   ./post_overhead [provider] [search]      for efa: in the environment of emulated devices
// Exits with 1 if the overhead exceeds 60 ns.
#include <x86intrin.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#define private public  // to wrap the functions of a domain's endpoint and queue
#include "../../backends/libfabric/domain.h"
#undef private

using namespace aio;
using namespace aio::libfabric;

namespace {

constexpr std::uint32_t kBatch = 32;  // what the core posts per turn
constexpr std::uint32_t kRounds = 500;
constexpr std::size_t kPageNbytes = 4096;
constexpr double kMostNs = 60;

struct NullSink final : Sink {
  std::uint32_t stops = 0, counts = 0;
  void stopped(Flow& flow, std::uint32_t pieces, const Outcome& outcome) override {
    flow.in_flight -= pieces;
    stops += pieces;
    if (!outcome.ok()) std::printf("a write failed: %s\n", outcome.reason.c_str()), std::exit(1);
  }
  void counted(std::uint32_t) override { ++counts; }
  void message(PeerNumber, std::string) override {}
  void sent(TransferId, const Outcome&) override {}
  void released(RegionNumber) override {}
  void fenced(PeerNumber) override {}
  void peer_failed(PeerNumber, const Outcome&) override {}
};

// Wraps the provider's functions, and adds up their time.
std::uint64_t inside;
bool got;
abi::RmaOps* real_rma;
abi::CqOps* real_cq;

ssize_t writemsg(abi::Ep* ep, const abi::RmaMessage* message, std::uint64_t flags) {
  const std::uint64_t from = __rdtsc();
  const ssize_t result = real_rma->writemsg(ep, message, flags);
  inside += __rdtsc() - from;
  return result;
}

ssize_t read(abi::Cq* cq, void* entries, std::size_t count) {
  const std::uint64_t from = __rdtsc();
  const ssize_t result = real_cq->read(cq, entries, count);
  inside += __rdtsc() - from;
  got |= result > 0;
  return result;
}

double ticks_per_ns() {
  const auto began = std::chrono::steady_clock::now();
  const std::uint64_t from = __rdtsc();
  while (std::chrono::steady_clock::now() - began < std::chrono::milliseconds(100)) {
  }
  const std::uint64_t ticks = __rdtsc() - from;
  return static_cast<double>(ticks) /
         std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - began).count();
}

// Ticks per page outside of the provider: the whole round without the time inside; the median of all rounds, since a
// round in which the process was preempted says nothing. `post` posts a batch, and `reap` reads the queue once.
double own_ticks(const std::function<void()>& settle, const std::function<void()>& post,
                 const std::function<bool()>& reap) {
  std::vector<double> rounds;
  for (std::uint32_t round = 0; round < kRounds; ++round) {
    inside = 0;
    std::uint64_t own = __rdtsc();
    post();
    own = __rdtsc() - own - inside;
    settle();
    for (bool over = false; !over;) {
      inside = 0;
      got = false;
      const std::uint64_t from = __rdtsc();
      over = reap();
      // The number of polls of an empty queue depends on the device.
      if (got) own += __rdtsc() - from - inside;
    }
    rounds.push_back(static_cast<double>(own) / kBatch);
  }
  std::ranges::nth_element(rounds, rounds.begin() + kRounds / 2);
  return rounds[kRounds / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const Options options{{"provider", argc > 1 ? argv[1] : "efa"}, {"search", argc > 2 ? argv[2] : ""}};
  NullSink sink_a, sink_b;
  auto a = open_domains(sink_a, options), b = open_domains(sink_b, options);
  auto& domain = static_cast<FabricDomain&>(*a.front());
  std::vector<std::byte> source(kBatch * kPageNbytes), target(kBatch * kPageNbytes);
  const auto at = [](std::vector<std::byte>& bytes) { return reinterpret_cast<std::uint64_t>(bytes.data()); };
  const Endpoint end_a = domain.connect(1, std::nullopt), end_b = b.front()->connect(1, std::nullopt);
  domain.connect(1, end_b);
  b.front()->connect(1, end_a);
  domain.register_local(10, {at(source), source.size(), 0, -1, 0});
  const std::string key = b.front()->register_local(20, {at(target), target.size(), access_remote_write, -1, 0});
  domain.register_remote(30, {1, target.size(), key, {}});
  Peer& peer = *domain.find(1);
  while (!peer.handshake_done()) domain.progress(), b.front()->progress();

  abi::Ep* ep = peer.channel->endpoint.get();
  abi::RmaOps rma = *(real_rma = ep->rma);
  rma.writemsg = writemsg;
  ep->rma = &rma;
  abi::Cq* cq = domain.cq_.get();
  abi::CqOps cq_ops = *(real_cq = cq->ops);
  cq_ops.read = read;
  cq->ops = &cq_ops;

  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < kBatch; ++i) {
    pieces.push_back({at(source) + i * kPageNbytes, i * kPageNbytes, kPageNbytes, 1, kPieceImmediate});
  }
  // Waits until all have arrived; most completions are queued by then.
  std::uint32_t arrived = sink_b.counts;
  const auto settle = [&] {
    while (sink_b.counts - arrived < kBatch) b.front()->progress(), std::this_thread::yield();
    arrived = sink_b.counts;
    std::this_thread::sleep_for(std::chrono::microseconds(500));
  };

  Flow flow{};
  const auto ours = own_ticks(
      settle,
      [&] {
        flow = Flow{nullptr, pieces.data(), {1, 0, Op::write, 10, 30, 0, kBatch, 0}};
        sink_a.stops = 0;
        while (!flow.exhausted()) domain.post(flow, kBatch);
      },
      [&] {
        domain.progress();
        return sink_a.stops == kBatch;
      });

  const RemoteRegion& remote = domain.remote_regions_.at(30);
  void* desc = domain.local_regions_.at(10).registration->mem_desc;
  std::array<abi::Context, kBatch> contexts{};
  std::uint32_t done = 0;
  const auto raw = own_ticks(
      settle,
      [&] {
        done = 0;
        for (std::uint32_t i = 0; i < kBatch; ++i) {
          const iovec from{source.data() + i * kPageNbytes, kPageNbytes};
          const abi::RmaIov to{remote.key.base + i * kPageNbytes, kPageNbytes, remote.key.key};
          const abi::RmaMessage message{&from, &desc, 1, peer.paired_nic().address, &to, 1, &contexts[i], 1};
          while (ep->rma->writemsg(ep, &message, abi::completion | abi::remote_cq_data) == -EAGAIN) {
          }
        }
      },
      [&] {
        std::array<abi::CqEntry, 64> entries;
        const ssize_t count = cq->ops->read(cq, entries.data(), entries.size());
        if (count > 0) done += static_cast<std::uint32_t>(count);
        return done == kBatch;
      });
  ep->rma = real_rma;
  cq->ops = real_cq;
  const double scale = ticks_per_ns();
  const double overhead = (ours - raw) / scale;
  std::printf("per page of %zu bytes, outside of the provider: %.1f ns ours, %.1f ns raw, overhead %.1f ns\n",
              kPageNbytes, ours / scale, raw / scale, overhead);
  return overhead <= kMostNs ? 0 : 1;
}
