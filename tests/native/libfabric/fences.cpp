// Revocation of regions and fencing of peers.
#include <algorithm>
#include <chrono>
#include <vector>

#include "fixture.h"

namespace fabric_test {

namespace {

// With a key that was never valid, the operation fails and others go on.
void test_bad_key() {
  Pair pair;
  auto& [a, b] = pair;
  Memory from(a, 10, 1 << 20), to(b, 20, 1 << 20);
  fill(from.bytes, 5);
  std::string bad = to.key;
  bad[9] = static_cast<char>(bad[9] ^ 0x55);
  bad[16] = static_cast<char>(bad[16] ^ 0x40);  // and a serial that the peer never issued
  a.domain->register_remote(30, {kB, to.bytes.size(), to.key, {}});
  a.domain->register_remote(31, {kB, to.bytes.size(), bad, {}});
  Batch good({{from.address(), 0, 4096, 1, kPieceImmediate}}, kB, 10, 30);
  CHECK(run(pair.both(), a, good));
  Batch wrong({{from.address(), 0, 4096, 2, kPieceImmediate}}, kB, 10, 31);
  CHECK(run(pair.both(), a, wrong));
  CHECK(a.sink.failures_seen.size() == 1);
  if (!a.sink.failures_seen.empty()) {
    const Outcome& outcome = a.sink.failures_seen.front();
    std::printf("  bad key: status %d, code %ld, %s\n", static_cast<int>(outcome.status),
                static_cast<long>(outcome.code), outcome.reason.c_str());
    CHECK(outcome.status == Status::stale_region);
  }
  Batch again({{from.address() + 4096, 4096, 4096, 3, kPieceImmediate}}, kB, 10, 30);
  CHECK(run(pair.both(), a, again));
  CHECK(drive(pair.both(), [&] { return b.sink.counts.size() == 2; }));
  CHECK(b.sink.counts == (std::vector<std::uint32_t>{1, 3}));
  CHECK(a.sink.failures_seen.size() == 1);
  CHECK(std::memcmp(from.bytes.data(), to.bytes.data(), 8192) == 0);
  CHECK(a.sink.failed_peers.empty());
}

void test_deregister() {
  Pair pair;
  auto& [a, b] = pair;
  Memory from(a, 10, 16 << 20), to(b, 20, 16 << 20), other(b, 21, 4096);
  a.domain->register_remote(30, {kB, to.bytes.size(), to.key, {}});
  a.domain->register_remote(31, {kB, other.bytes.size(), other.key, {}});
  Batch before({{from.address(), 0, 16 << 20, 1, kPieceImmediate}}, kB, 10, 30);
  CHECK(drive(pair.both(), [&] { return a.domain->post(before.flow, 1) == Posted::more && before.flow.next == 1; }));
  for (int i = 0; i < 3; ++i) b.domain->progress();
  const bool under_way = b.sink.counts.empty();
  const auto start = Clock::now();
  b.domain->deregister(20);
  CHECK(b.sink.releases.empty() != device_checks_keys());
  CHECK(drive(pair.both(), [&] { return b.sink.releases.size() == 1; }));
  std::printf("  released after %.3f ms, with a write of 16 MiB %s\n",
              std::chrono::duration<double>(Clock::now() - start).count() * 1e3,
              under_way ? "under way" : "already in");
  std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0x77});
  CHECK(run(pair.both(), a, before));
  // A device refuses what is still in flight; software lets it arrive, and waits for it.
  const std::size_t refused = device_checks_keys() && under_way ? 1 : 0;
  CHECK(a.sink.failures_seen.size() == refused);
  Batch after({{from.address(), 0, 4096, 2, kPieceImmediate}}, kB, 10, 30);
  CHECK(run(pair.both(), a, after));
  CHECK(a.sink.failures_seen.size() == refused + 1);
  for (const Outcome& outcome : a.sink.failures_seen) CHECK(outcome.status == Status::stale_region);
  Batch elsewhere({{from.address(), 0, 4096, 3, kPieceImmediate}}, kB, 10, 31);
  CHECK(run(pair.both(), a, elsewhere));
  CHECK(drive(pair.both(), [&] { return !b.sink.counts.empty() && b.sink.counts.back() == 3; }));
  for (const auto byte : to.bytes) {
    if (byte != 0x77) {
      CHECK(byte == 0x77);
      break;
    }
  }
  try {
    a.domain->register_remote(32, {kB, to.bytes.size(), to.key, {}});
    CHECK(device_checks_keys());  // no peer was queried: it is noticed when the key is used
  } catch (const Failure& failure) {
    CHECK(failure.kind == Failure::Kind::stale);
  }
  // A region that no peer can reach is released at once.
  Memory private_memory(b, 22, 4096, 0);
  b.domain->deregister(22);
  CHECK(b.sink.releases.back() == 22);
}

// A peer that was not connected at the deregistration finds out by a query when its connection breaks.
void test_old_descriptor() {
  Node a, b;
  Memory from(a, 10, 4096), to(b, 20, 4096);
  b.domain->deregister(20);
  CHECK(b.sink.releases.size() == 1);
  connect_nodes(a, b);
  a.domain->register_remote(30, {kB, 4096, to.key, {}});
  Batch batch({{from.address(), 0, 4096, 2, kPieceImmediate}}, kB, 10, 30);
  CHECK(run({&a, &b}, a, batch));
  CHECK(a.sink.failures_seen.size() == 1 && a.sink.failures_seen.back().status == Status::stale_region);
}

void test_disconnect(bool lost) {
  Pair pair;
  auto& [a, b] = pair;
  {
    Memory from(a, 10, 8 << 20), to(b, 20, 8 << 20);
    a.domain->register_remote(30, {kB, to.bytes.size(), to.key, {}});
    Batch batch(std::vector<Piece>(64, Piece{from.address(), 0, 8 << 20, 9, kPieceImmediate}), kB, 10, 30);
    CHECK(drive(pair.both(), [&] { return a.domain->post(batch.flow, 32) == Posted::more && batch.flow.next >= 32; }));
    for (int i = 0; i < 10; ++i) b.domain->progress();
    const auto outstanding = batch.flow.in_flight;
    a.domain->disconnect(kB, lost);
    batch.flow.failed = true;
    CHECK(drive({&a}, [&] { return a.sink.fences.size() == 1; }, closes_at_once() ? 3 : 30));
    CHECK(batch.flow.in_flight == 0);
    std::printf("  %u pieces under way, %zu reported as lost\n", outstanding, a.sink.failures_seen.size());
    for (const auto& outcome : a.sink.failures_seen) CHECK(outcome.status == Status::peer_lost);
    b.domain->disconnect(kA, lost);
    CHECK(drive({&b}, [&] { return b.sink.fences.size() == 1; }, 3));
    a.domain->deregister(10);
    a.domain->deregister(30);
    b.domain->deregister(20);
    CHECK(a.sink.releases.size() == 1 && b.sink.releases.size() == 1);
  }
  CHECK(a.domain->handles() == 0 && b.domain->handles() == 0);
  // Again, with the same domains.
  connect_nodes(a, b, 5, 6);
  Memory from(a, 11, 4096), to(b, 21, 4096);
  a.domain->register_remote(31, {5, 4096, to.key, {}});
  Batch batch({{from.address(), 0, 4096, 4, kPieceImmediate}}, 5, 11, 31);
  const auto lost_before = a.sink.failures_seen.size();
  CHECK(run(pair.both(), a, batch) && a.sink.failures_seen.size() == lost_before);
}

// A peer with two NICs, where we have one: the second is paired with none of ours, and still holds our keys.
void test_surplus_nic() {
  Node first, second, b;
  const Endpoint at_first = first.domain->connect(kB, std::nullopt);
  const Endpoint at_second = second.domain->connect(kB, std::nullopt);
  const Endpoint at_b = b.domain->connect(kA, std::nullopt);
  b.domain->admit(kA, at_second);
  b.domain->connect(kA, at_first);
  first.domain->connect(kB, at_b);
  second.domain->connect(kB, at_b);
  Memory from(second, 10, 64 << 20), to(b, 20, 64 << 20), other(b, 21, 4096);
  second.domain->register_remote(30, {kB, to.bytes.size(), to.key, {}});
  second.domain->register_remote(31, {kB, other.bytes.size(), other.key, {}});
  std::fill(from.bytes.begin(), from.bytes.end(), std::uint8_t{0xAB});
  Batch before({{from.address(), 0, 64 << 20, 1, kPieceImmediate}}, kB, 10, 30);
  CHECK(drive({&first, &second, &b}, [&] {
    if (before.flow.next == 0) second.domain->post(before.flow, 1);
    return to.bytes[4096] == 0xAB;
  }));
  b.domain->deregister(20);
  // The second NIC makes no progress, so it cannot reply. The first can.
  drive_for({&first, &b}, 0.3);
  CHECK(b.sink.releases.empty() != device_checks_keys());
  CHECK(drive({&first, &second, &b}, [&] { return b.sink.releases.size() == 1; }));
  std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0x77});
  CHECK(run({&first, &second, &b}, second, before));
  Batch after({{from.address(), 0, 4096, 2, kPieceImmediate}}, kB, 10, 30);
  CHECK(run({&first, &second, &b}, second, after));
  CHECK(!second.sink.failures_seen.empty());
  for (const Outcome& outcome : second.sink.failures_seen) CHECK(outcome.status == Status::stale_region);
  Batch elsewhere({{from.address(), 0, 4096, 3, kPieceImmediate}}, kB, 10, 31);
  CHECK(run({&first, &second, &b}, second, elsewhere));
  CHECK(drive({&first, &second, &b}, [&] { return !b.sink.counts.empty() && b.sink.counts.back() == 3; }));
  CHECK(std::ranges::count(to.bytes, 0x77) == 64 << 20);
  b.domain->disconnect(kA, true);
  CHECK(drive({&first, &second, &b}, [&] { return b.sink.fences.size() == 1; }));
  b.domain->deregister(21);
  CHECK(b.domain->handles() == 0);
}

// What the device has received and acknowledged to the sender is reported, even if the sender is fenced before we poll.
void test_arrived_before_fence() {
  if (!device_checks_keys()) return;  // in software nothing arrives without progress
  Pair pair;
  auto& [a, b] = pair;
  Batch greeting({{0, 0, 0, 1, kPieceImmediate}}, kB, 0, 0);
  CHECK(run(pair.both(), a, greeting));
  CHECK(drive(pair.both(), [&] { return b.sink.counts.size() == 1; }));
  Batch batch(std::vector<Piece>(100, Piece{0, 0, 0, 2, kPieceImmediate}), kB, 0, 0);
  CHECK(run({&a}, a, batch));
  CHECK(a.sink.failures_seen.empty() && b.sink.counts.size() == 1);
  b.domain->disconnect(kA, true);
  CHECK(drive({&b}, [&] { return b.sink.fences.size() == 1; }));
  CHECK(b.sink.counts.size() == 101);
}

// A message is queued, unread, when its peer is fenced: the endpoint it arrived at is closed before it is read.
void test_unread_message() {
  Pair pair;
  auto& [a, b] = pair;
  CHECK(drive(pair.both(), [&] { return b.domain->send(kA, 1, "first") == Posted::more; }));
  CHECK(drive(pair.both(), [&] { return a.sink.messages.size() == 1 && b.sink.sents.size() == 1; }));
  Endpoint dead;
  {
    Node c;
    dead = c.domain->connect(1, std::nullopt);
  }
  a.domain->connect(2, std::nullopt);
  a.domain->connect(2, dead);
  CHECK(b.domain->send(kA, 2, "second") == Posted::more);
  drive_for({&b}, 0.05);
  // While peer 2 is not connected, posting to it drives libfabric, and the queue is not read.
  for (int i = 0; i < 20; ++i) a.domain->send(2, 3, "nobody hears this");
  a.domain->disconnect(kB, true);
  a.domain->disconnect(2, true);
  CHECK(drive({&a}, [&] { return a.sink.fences.size() == 2; }));
  CHECK(a.domain->handles() == 0);
}

void test_nobody_there() {
  Node a(Settings{{"post_deadline_s", "1"}});
  Endpoint dead;
  {
    Node b;
    dead = b.domain->connect(kA, std::nullopt);
  }
  a.domain->connect(kB, std::nullopt);
  a.domain->connect(kB, dead);
  Batch batch({{0, 0, 0, 1, kPieceImmediate}}, kB, 0, 0);
  const auto start = Clock::now();
  CHECK(run({&a}, a, batch, 10));
  CHECK(a.sink.failures_seen.size() == 1);
  if (!a.sink.failures_seen.empty()) {
    std::printf("  after %.1f s: %s\n", std::chrono::duration<double>(Clock::now() - start).count(),
                a.sink.failures_seen.front().reason.c_str());
  }
  a.domain->disconnect(kB, true);
  CHECK(a.domain->handles() == 0);
}

}  // namespace

Tests fence_tests() {
  return {
      {"bad key", test_bad_key},
      {"deregister", test_deregister},
      {"old descriptor", test_old_descriptor},
      {"surplus NIC", test_surplus_nic},
      {"arrived before the fence", test_arrived_before_fence},
      {"disconnect, lost", [] { test_disconnect(true); }},
      {"disconnect, goodbye", [] { test_disconnect(false); }},
      {"unread message", test_unread_message},
      {"nobody there", test_nobody_there},
  };
}

}  // namespace fabric_test
