// Libfabric domains under load, and blocked on their descriptors.
#include <poll.h>

#include <array>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "fixture.h"

namespace fabric_test {

namespace {

// Three nodes write, notify, read and message each other while regions come and go; a wrong key now and then breaks a
// connection. Everything reported as done has arrived, nothing arrives twice, and every operation ends.
void test_storm() {
  constexpr std::size_t kNodes = 3;
  constexpr std::size_t kNbytes = 256 << 10;
  const unsigned seed = std::random_device{}();
  std::printf("  seed %u\n", seed);
  std::mt19937 random(seed);
  std::vector<std::unique_ptr<Memory>> sources, targets,
      old;  // before the nodes, to outlive operations in flight
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<harness::Node*> all;
  for (std::size_t i = 0; i < kNodes; ++i) all.push_back(nodes.emplace_back(std::make_unique<Node>()).get());
  const auto peer = [](std::size_t i) { return static_cast<PeerNumber>(100 + i); };
  for (std::size_t i = 0; i < kNodes; ++i) {
    for (std::size_t j = 0; j < i; ++j) connect_nodes(*all[i], *all[j], peer(j), peer(i));
  }
  RegionNumber next_region = 1;
  std::map<std::pair<std::size_t, std::size_t>, RegionNumber> remote;  // at node i, of the target of node j
  const auto renew = [&](std::size_t j) {
    targets[j] = std::make_unique<Memory>(*all[j], next_region++, kNbytes);
    for (std::size_t i = 0; i < kNodes; ++i) {
      if (i == j) continue;
      remote[{i, j}] = next_region++;
      all[i]->domain->register_remote(remote[{i, j}], {peer(j), kNbytes, targets[j]->key, {}});
    }
  };
  targets.resize(kNodes);
  for (std::size_t i = 0; i < kNodes; ++i) {
    sources.push_back(std::make_unique<Memory>(*all[i], next_region++, kNbytes, 0));
    renew(i);
  }
  struct Going {
    std::size_t from, to;
    std::unique_ptr<Batch> batch;
    std::uint64_t imms;
  };
  std::vector<Going> going;
  std::vector<std::uint64_t> least(kNodes), most(kNodes), got(kNodes);
  std::size_t ended = 0;
  std::size_t failed = 0;
  const auto reap = [&] {
    std::erase_if(going, [&](Going& one) {
      if (!one.batch->flow.exhausted()) all[one.from]->domain->post(one.batch->flow, 1 + random() % 32);
      if (!one.batch->over()) return false;
      ++ended;
      failed += one.batch->flow.failed;
      (one.batch->flow.failed ? most : least)[one.to] += one.imms;
      return true;
    });
  };
  constexpr std::size_t kBatches = 3000;
  std::size_t started = 0;
  CHECK(drive(
      all,
      [&] {
        if (started < kBatches && going.size() < 20) {
          ++started;
          const std::size_t from = random() % kNodes;
          const std::size_t to = (from + 1 + random() % (kNodes - 1)) % kNodes;
          const auto kind = random() % 100;
          std::vector<Piece> pieces(1 + random() % 60);
          const bool reads = kind < 15;
          for (Piece& piece : pieces) {
            const std::uint64_t nbytes = random() % 4 == 0 ? 0 : 1 + random() % 4096;
            piece = {sources[from]->address() + random() % (kNbytes - 4096), random() % (kNbytes - 4096),
                     reads ? nbytes + (nbytes == 0) : nbytes, static_cast<std::uint32_t>(to),
                     reads ? 0 : kPieceImmediate};
          }
          RegionNumber target = remote[{from, to}];
          if (kind == 99) {  // a key that no node issued
            std::string key(24, '\0');
            for (char& c : key) c = static_cast<char>(random());
            target = next_region++;
            all[from]->domain->register_remote(target, {peer(to), kNbytes, key, {}});
          }
          const std::uint64_t imms = reads ? 0 : pieces.size();
          going.push_back({from, to,
                           std::make_unique<Batch>(std::move(pieces), peer(to), sources[from]->number, target,
                                                   reads ? Op::read : Op::write),
                           imms});
          if (kind > 95 && kind < 99) {
            all[to]->domain->deregister(targets[to]->number);
            old.push_back(std::move(targets[to]));
            renew(to);
          }
        }
        reap();
        return ended == kBatches;
      },
      60));
  std::size_t released = 0;
  const auto releases = [&] {
    released = 0;
    for (harness::Node* node : all) released += node->sink.releases.size();
    return released == old.size();
  };
  CHECK(drive(all, releases));  // a reply that was lost with a connection is requested again
  drive_for(all, 0.2);
  for (std::size_t i = 0; i < kNodes; ++i) {
    for (const auto& [counter, total] : all[i]->sink.totals) CHECK(counter == i);
    got[i] = all[i]->sink.totals[static_cast<std::uint32_t>(i)];
    CHECK(least[i] <= got[i] && got[i] <= least[i] + most[i]);
    CHECK(all[i]->sink.failed_peers.empty());
  }
  std::printf("  %zu batches, %zu failed, %zu regions taken back\n", ended, failed, released);
}

// Blocks on the descriptor as the worker does; an arrival must wake it.
void test_arm() {
  Pair pair;
  auto& [a, b] = pair;
  if (b.domain->polled()) {
    std::printf("  polled: no descriptor\n");
    return;
  }
  Memory from(a, 10, 4096), to(b, 20, 4096);
  a.domain->register_remote(30, {kB, 4096, to.key, {}});
  drive_for(pair.both(), 0.1);
  int wakes = 0;
  for (std::uint32_t i = 1; i <= 200; ++i) {
    Batch batch({{from.address(), 0, 4096, i, kPieceImmediate}}, kB, 10, 30);
    for (int round = 0; !batch.over() || b.sink.counts.size() < i; ++round) {
      if (!batch.flow.exhausted()) a.domain->post(batch.flow, 1);
      for (harness::Node* node : pair.both()) {
        while (node->domain->progress()) {
        }
      }
      if (batch.over() && b.sink.counts.size() >= i) break;
      std::vector<pollfd> fds;
      bool ready = false;
      for (harness::Node* node : pair.both()) {
        const auto armed = node->domain->arm();
        ready |= !armed;
        if (armed) {
          for (const int fd : *armed) fds.push_back({fd, POLLIN, 0});
        }
      }
      if (!ready) {
        const int woken = ::poll(fds.data(), fds.size(), 1000);
        CHECK(woken > 0);
        if (woken <= 0) return;
        ++wakes;
      }
    }
  }
  drive_for(pair.both(), 0.02);
  std::printf("  %d wakes; idle: needs_progress %d\n", wakes, static_cast<int>(b.domain->needs_progress()));
  CHECK(!a.domain->needs_progress() && !b.domain->needs_progress());
}

// The queue's wait set contained endpoints that are closed by now.
void test_arm_after_disconnects() {
  Node a, b;
  for (PeerNumber peer = 1; peer <= 20; ++peer) {
    connect_nodes(a, b, peer, peer);
    CHECK(drive({&a, &b}, [&] { return a.domain->send(peer, peer, "hello") == Posted::more; }));
    CHECK(drive({&a, &b}, [&] { return b.sink.messages.size() == peer; }));
    a.domain->disconnect(peer, true);
    b.domain->disconnect(peer, true);
    CHECK(drive({&a, &b}, [&] { return a.sink.fences.size() == peer && b.sink.fences.size() == peer; }));
    for (harness::Node* node : std::array<harness::Node*, 2>{&a, &b}) {
      const auto armed = node->domain->arm();
      CHECK(!armed || armed->empty() == node->domain->polled());
    }
  }
}

}  // namespace

Tests storm_tests() {
  return {
      {"storm", test_storm},
      {"arm", test_arm},
      {"arm after disconnects", test_arm_after_disconnects},
  };
}

}  // namespace fabric_test
