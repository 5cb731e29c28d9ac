// Drives the libfabric domain without the core: a fake sink, flows made by hand, two domains in one process and in two.
//   g++ -std=c++20 -O2 backends/libfabric/*.cpp tests/native/libfabric_test.cpp -ldl -o libfabric_test
//   ./libfabric_test [provider] [search]      e.g.  tcp .venv/lib/mpich/libfabric.so.1;  ONLY=storm runs that one
// For efa, on emulated devices: python tests/efa_emulator/emulator.py DIRECTORY ./libfabric_test efa ...;  FABRIC=efa
// With -g -fsanitize=address,undefined it sees into libfabric only where libfabric was built so, too.
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../backends/libfabric/domain.h"
#include "../../backends/libfabric/wire.h"
#include "harness.h"

// libfabric's tcp (2.5.1) loses 8 bytes whenever two sides connect at once and one of them is turned down.
extern "C" const char* __lsan_default_suppressions() { return "leak:libfabric.so"; }

using namespace aio;
using harness::Batch, harness::Clock, harness::drive, harness::drive_for, harness::failures, harness::Memory,
    harness::run;

namespace {

std::string provider = "tcp";
std::string search_path;
using Settings = std::map<std::string, std::string>;
Settings extra;

struct Node : harness::Node {
  explicit Node(Settings options = {}) {
    options.insert({{"provider", provider}, {"search", search_path}, {"unproven", "1"}});
    options.insert(extra.begin(), extra.end());
    domain = std::move(libfabric::open_domains(sink, options).front());
  }
};

// Then closing a registration is enough, and nobody is asked.
bool device_checks_keys() { return provider == "efa"; }

// Otherwise what was posted later may arrive first.
bool keeps_order() { return provider != "efa"; }

// The fabric `efa` closes no endpoint before all that is under way has stopped.
bool closes_at_once() { return !extra.contains("fabric") || extra["fabric"] != "efa"; }

void fill(std::vector<std::uint8_t>& bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const std::uint64_t value = random();
    std::memcpy(&bytes[i], &value, 8);
  }
}

constexpr PeerNumber kB = 1, kA = 1;

void join(Node& a, Node& b, PeerNumber b_at_a = kB, PeerNumber a_at_b = kA) { harness::join(a, b, b_at_a, a_at_b); }

struct Pair {
  Node a, b;
  explicit Pair(const Settings& options = {}) : a(options), b(options) { join(a, b); }
  std::vector<harness::Node*> both() { return {&a, &b}; }
};

void test_writes() {
  Pair pair;
  auto& [a, b] = pair;
  constexpr std::size_t kMost = 64u << 20;
  Memory from(a, 10, kMost), to(b, 20, kMost + 64);
  a.domain->register_remote(30, {kB, to.bytes.size(), to.key, {}});
  fill(from.bytes, 1);
  std::uint32_t immediate = 0x01020300;
  for (const std::size_t nbytes : {1ul, 7ul, 64ul, 4096ul, 65536ul, 1ul << 20, 1ul << 26}) {
    std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0xEE});
    const auto start = Clock::now();
    Batch batch({{from.address(), 32, nbytes, ++immediate, kPieceImmediate}}, kB, 10, 30);
    CHECK(run(pair.both(), a, batch));
    CHECK(drive(pair.both(), [&] { return !b.sink.counts.empty(); }));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    CHECK(b.sink.counts == std::vector<std::uint32_t>{immediate});
    CHECK(std::memcmp(&to.bytes[32], from.bytes.data(), nbytes) == 0);
    CHECK(to.bytes[31] == 0xEE && to.bytes[32 + nbytes] == 0xEE);
    b.sink.counts.clear();
    std::printf("  %9zu B: %.3f ms, %.2f GB/s\n", nbytes, seconds * 1e3, static_cast<double>(nbytes) / seconds / 1e9);
  }
  CHECK(a.sink.failures_seen.empty());
}

void test_pages() {
  Pair pair;
  auto& [a, b] = pair;
  constexpr std::size_t kPages = 10000, kNbytes = 4096;
  Memory from(a, 10, kPages * kNbytes), to(b, 20, kPages * kNbytes);
  a.domain->register_remote(30, {kB, to.bytes.size(), to.key, {}});
  fill(from.bytes, 2);
  for (const bool counted : {true, false}) {
    std::vector<Piece> pieces;
    for (std::size_t i = 0; i < kPages; ++i) {
      pieces.push_back(
          {from.address() + i * kNbytes, (kPages - 1 - i) * kNbytes, kNbytes, 0x500, counted ? kPieceImmediate : 0});
    }
    const auto start = Clock::now();
    Batch batch(std::move(pieces), kB, 10, 30);
    CHECK(run(pair.both(), a, batch));
    CHECK(drive(pair.both(), [&] { return b.sink.totals[0x500] == (counted ? kPages : 0); }));
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    std::printf("  %s: %.0f pages/s, %.2f GB/s\n", counted ? "counted" : "bare", kPages / seconds,
                kPages * kNbytes / seconds / 1e9);
    b.sink.totals.clear();
  }
  CHECK(a.sink.stops == 2 * kPages && a.sink.failures_seen.empty());
  bool same = true;
  for (std::size_t i = 0; i < kPages; ++i) {
    same &= std::memcmp(&from.bytes[i * kNbytes], &to.bytes[(kPages - 1 - i) * kNbytes], kNbytes) == 0;
  }
  CHECK(same);
  drive_for(pair.both(), 0.05);
  CHECK(b.sink.totals.empty());
}

void test_reads() {
  Pair pair;
  auto& [a, b] = pair;
  Memory into(a, 10, 8 << 20), from(b, 20, 8 << 20);
  fill(from.bytes, 3);
  a.domain->register_remote(30, {kB, from.bytes.size(), from.key, {}});
  Batch batch({{into.address() + 5, 7, 4 << 20, 0, 0}, {into.address() + (5 << 20), 5 << 20, 1, 0, 0}}, kB, 10, 30,
              Op::read);
  CHECK(run(pair.both(), a, batch));
  CHECK(a.sink.failures_seen.empty());
  CHECK(std::memcmp(&into.bytes[5], &from.bytes[7], 4 << 20) == 0);
  CHECK(into.bytes[4] == 0 && into.bytes[5 + (4 << 20)] == 0 && into.bytes[5 << 20] == from.bytes[5 << 20]);
}

void test_messages() {
  Pair pair;
  auto& [a, b] = pair;
  const std::size_t most = a.domain->attributes().max_message_nbytes;
  std::vector<std::string> sent;
  for (std::size_t i = 0; i < 300; ++i) sent.emplace_back(i % 7 == 0 ? most : i, static_cast<char>(i));
  std::size_t next = 0;
  CHECK(drive(pair.both(), [&] {
    if (next < sent.size() && a.domain->send(kB, next, sent[next]) == Posted::more) ++next;
    return b.sink.messages.size() == sent.size() && a.sink.sents.size() == sent.size();
  }));
  std::multimap<std::string, int> left;
  for (const auto& payload : sent) left.emplace(payload, 0);
  for (const auto& [peer, payload] : b.sink.messages) {
    CHECK(peer == kA);
    const auto found = left.find(payload);
    CHECK(found != left.end());
    if (found != left.end()) left.erase(found);
  }
  for (const auto& [id, outcome] : a.sink.sents) CHECK(outcome.ok());
  a.domain->send(kB, 9999, std::string(most + 1, 'x'));
  CHECK(!a.sink.sents[9999].ok());
}

void test_bare_immediates() {
  Pair pair;
  auto& [a, b] = pair;
  Batch batch(std::vector<Piece>(1000, Piece{0, 0, 0, 0xABCDEF01, kPieceImmediate}), kB, 0, 0);
  CHECK(run(pair.both(), a, batch));
  CHECK(drive(pair.both(), [&] { return b.sink.counts.size() == 1000; }));
  for (const auto count : b.sink.counts) CHECK(count == 0xABCDEF01);
}

// Providers that take one piece per operation get one; the others as many neighbours as fit.
bool bundles() { return provider.starts_with("tcp"); }

// Pieces of all sizes for several counters, some for none, some of nothing: what goes in one operation and what does
// not must not show in bytes, counts or reports.
void test_bundles() {
  const unsigned seed = std::random_device{}();
  std::printf("  seed %u\n", seed);
  std::mt19937 random(seed);
  Pair pair;
  auto& [a, b] = pair;
  constexpr std::size_t kNbytes = 16 << 20;
  Memory from(a, 10, kNbytes), to(b, 20, kNbytes);
  a.domain->register_remote(30, {kB, kNbytes, to.key, {}});
  fill(from.bytes, seed);
  std::size_t arrivals = 0;
  std::size_t counted = 0;
  std::uint64_t stops = 0;
  for (int round = 0; round < 60; ++round) {
    std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0xEE});
    std::vector<std::uint8_t> expected = to.bytes;
    std::map<std::uint32_t, std::uint64_t> totals;
    std::vector<Piece> pieces(1 + random() % 200);
    const auto counters = 1 + random() % 3;
    std::uint64_t offset = random() % 64;
    for (Piece& piece : pieces) {
      const std::uint64_t nbytes = random() % 4 == 0 ? 0 : random() % 8 == 0 ? random() % 70000 : 1 + random() % 6000;
      const std::uint32_t counts = random() % 6 == 0 ? random() % 256 : 0;
      const auto counter = static_cast<std::uint32_t>(0x800000 + random() % counters);
      const bool counts_it = random() % 8 != 0;
      piece = {from.address() + random() % (kNbytes - nbytes), offset, nbytes,
               counts_it ? counts << 24 | counter : static_cast<std::uint32_t>(random()),
               (counts_it ? kPieceImmediate : 0) | (random() % 16 == 0 ? kPieceDelivered : 0)};
      if (nbytes != 0) std::memcpy(&expected[offset], reinterpret_cast<const void*>(piece.local_addr), nbytes);
      if (counts_it) totals[counter] += counts + 1;
      counted += counts_it;
      offset += nbytes + random() % 3;
    }
    stops += pieces.size();
    Batch batch(std::move(pieces), kB, 10, 30);
    const std::uint32_t budget = 1 + static_cast<std::uint32_t>(random() % 300);
    const auto all_counted = [&] {
      if (!batch.flow.exhausted()) a.domain->post(batch.flow, budget);
      return batch.flow.exhausted() && b.sink.totals == totals;
    };
    CHECK(drive(pair.both(), all_counted));
    // Payload before count; and over a stream also that of the pieces before it which do not count.
    for (const Piece& piece : batch.pieces) {
      if (!piece.has_immediate() || piece.nbytes == 0) continue;
      CHECK(std::memcmp(&to.bytes[piece.remote_offset], &expected[piece.remote_offset], piece.nbytes) == 0);
    }
    if (keeps_order() && !totals.empty() && batch.pieces.back().has_immediate()) CHECK(to.bytes == expected);
    CHECK(drive(pair.both(), [&] { return batch.over(); }));
    CHECK(drive(pair.both(), [&] { return a.sink.stops == stops; }));
    drive_for(pair.both(), 0.002);
    CHECK(to.bytes == expected);
    CHECK(b.sink.totals == totals);
    arrivals += b.sink.counts.size();
    b.sink.counts.clear();
    b.sink.totals.clear();
  }
  CHECK(a.sink.failures_seen.empty());
  CHECK(bundles() ? arrivals < counted : arrivals == counted);
  std::printf("  %zu counts of pieces in %zu immediates\n", counted, arrivals);

  // Reads go together, too.
  std::vector<Piece> pieces;
  for (std::uint64_t i = 0; i < 1000; ++i)
    pieces.push_back({from.address() + i * 5000, (999 - i) * 4096 + i % 7, 1 + i * 4 % 4090, 0, 0});
  Batch reads(std::move(pieces), kB, 10, 30, Op::read);
  fill(to.bytes, seed + 1);
  std::vector<std::uint8_t> expected = from.bytes;
  for (const Piece& piece : reads.pieces)
    std::memcpy(&expected[piece.local_addr - from.address()], &to.bytes[piece.remote_offset], piece.nbytes);
  CHECK(run(pair.both(), a, reads));
  CHECK(from.bytes == expected && a.sink.stops == stops + 1000 && a.sink.failures_seen.empty());
}

// One immediate holds 256 counts, of one counter.
void test_bundled_counts() {
  Pair pair;
  auto& [a, b] = pair;
  const auto arrivals = [&](std::vector<std::uint32_t> immediates) {
    std::vector<Piece> pieces;
    for (const auto immediate : immediates) pieces.push_back({0, 0, 0, immediate, kPieceImmediate});
    b.sink.counts.clear();
    b.sink.totals.clear();
    Batch batch(std::move(pieces), kB, 0, 0);
    CHECK(drive(pair.both(), [&] {
      if (!batch.flow.exhausted()) a.domain->post(batch.flow, 1000);
      return batch.over();
    }));
    drive_for(pair.both(), 0.02);
    if (!keeps_order()) std::ranges::sort(b.sink.counts, std::greater<>());  // as they are in what is expected below
    return b.sink.counts;
  };
  using Counts = std::vector<std::uint32_t>;
  const Counts alone{0x07000005, 0x00000006};
  CHECK(arrivals({0xC7000005, 0x37000005}) == (bundles() ? Counts{0xFF000005} : Counts{0xC7000005, 0x37000005}));
  CHECK(arrivals({0xC7000005, 0x38000005}) == (Counts{0xC7000005, 0x38000005}));
  CHECK(arrivals({0xFF000005, 0x00000005}) == (Counts{0xFF000005, 0x00000005}));
  CHECK(arrivals({0x07000005, 0x00000006}) == alone);
  if (bundles()) CHECK(arrivals(Counts(300, 0x00000005)) == (Counts{0xFF000005, 0x2B000005}));
  arrivals(Counts(300, 0x00000005));
  CHECK(b.sink.totals[5] == 300);
}

// What is wrong in the middle fails by itself: those before it arrive, those after it are not posted. And what the peer
// refuses or does not live to see fails with every piece that travelled with it, each once.
void test_bundled_failures() {
  Pair pair;
  auto& [a, b] = pair;
  constexpr std::size_t kNbytes = 1 << 20;
  Memory from(a, 10, kNbytes), to(b, 20, kNbytes);
  fill(from.bytes, 6);
  std::string bad = to.key;
  bad[9] = static_cast<char>(bad[9] ^ 0x55);
  bad[16] = static_cast<char>(bad[16] ^ 0x40);
  a.domain->register_remote(30, {kB, kNbytes, to.key, {}});
  a.domain->register_remote(31, {kB, kNbytes, bad, {}});
  const auto make = [&](std::size_t count) {
    std::vector<Piece> pieces;
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t nbytes = i % 5 == 4 ? 0 : 1024;
      pieces.push_back({from.address() + i * 1024, i * 1024, nbytes, 7, kPieceImmediate});
    }
    return pieces;
  };
  const auto post_all = [&](Batch& batch, std::uint32_t budget) {
    return drive(pair.both(), [&] {
      if (!batch.flow.exhausted()) a.domain->post(batch.flow, budget);
      return batch.over();
    });
  };
  std::uint64_t counted = 0;
  for (std::uint32_t wrong = 0; wrong < 11; ++wrong) {
    const auto stops = a.sink.stops;
    a.sink.failures_seen.clear();
    std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0});
    auto pieces = make(11);
    pieces[wrong] = {from.address(), kNbytes - 8, 9, 7, kPieceImmediate};
    Batch batch(std::move(pieces), kB, 10, 30);
    CHECK(post_all(batch, 100));
    CHECK(a.sink.failures_seen.size() == 1 && a.sink.failures_seen.front().code == EINVAL);
    CHECK(batch.flow.next == wrong + 1 && a.sink.stops - stops == wrong + 1);
    counted += wrong;
    CHECK(drive(pair.both(), [&] { return b.sink.totals[7] == counted; }));
    for (std::uint32_t i = 0; i < 11; ++i) {
      const bool arrived = std::memcmp(&from.bytes[i * 1024], &to.bytes[i * 1024], 1024) == 0;
      CHECK(arrived == (i < wrong && i % 5 != 4));
    }
  }
  // A key that the peer refuses.
  auto stops = a.sink.stops;
  a.sink.failures_seen.clear();
  Batch refused(make(64), kB, 10, 31);
  CHECK(post_all(refused, 32));
  CHECK(!a.sink.failures_seen.empty() && a.sink.stops - stops == refused.flow.next);
  for (const Outcome& outcome : a.sink.failures_seen)
    CHECK(outcome.status == Status::stale_region || outcome.status == Status::provider);
  drive_for(pair.both(), 0.02);
  CHECK(b.sink.totals[7] <= counted + 64);
  counted = b.sink.totals[7];
  Batch again(make(64), kB, 10, 30);
  CHECK(post_all(again, 32) && !again.flow.failed);
  CHECK(drive(pair.both(), [&] { return b.sink.totals[7] == counted + 64; }));
  // Nobody takes them any more.
  stops = a.sink.stops;
  a.sink.failures_seen.clear();
  Batch lost(make(1000), kB, 10, 30);
  a.domain->post(lost.flow, 1000);
  CHECK(lost.flow.next > 0 && lost.flow.in_flight > 0);
  a.domain->disconnect(kB, true);
  lost.flow.failed = true;
  if (!closes_at_once()) CHECK(drive(pair.both(), [&] { return !a.sink.fences.empty(); }));
  CHECK(lost.flow.in_flight == 0 && a.sink.stops - stops == lost.flow.next);
  for (const Outcome& outcome : a.sink.failures_seen) CHECK(outcome.status == Status::peer_lost);
  b.domain->disconnect(kA, true);  // what is still on its way to `to` must not outlive it
}

void test_malformed() {
  Node a;
  const Endpoint own = a.domain->connect(1, std::nullopt);
  std::mt19937 random(4);
  int refused = 0;
  const auto offer = [&](const std::string& blob) {
    try {
      a.domain->connect(1, Endpoint{blob, {}});
    } catch (const Failure& failure) {
      refused += failure.kind == Failure::Kind::usage;
    }
  };
  for (int i = 0; i < 2000; ++i) {
    std::string blob(random() % 200, '\0');
    for (char& c : blob) c = static_cast<char>(random());
    offer(blob);
    offer(own.blob.substr(0, random() % own.blob.size()));
    offer(own.blob + blob + "x");
  }
  CHECK(refused == 6000);
  for (const std::size_t nbytes : {0ul, 16ul, 23ul, 25ul}) {
    try {
      a.domain->register_remote(5, {1, 64, std::string(nbytes, 'k'), {}});
      CHECK(false);
    } catch (const Failure& failure) {
      CHECK(failure.kind == Failure::Kind::usage);
    }
  }
  a.domain->disconnect(1, true);
  CHECK(a.sink.fences.size() == 1 && a.domain->handles() == 0);
}

// A key that was never valid: the operation fails, others go on.
void test_bad_key() {
  Pair pair;
  auto& [a, b] = pair;
  Memory from(a, 10, 1 << 20), to(b, 20, 1 << 20);
  fill(from.bytes, 5);
  std::string bad = to.key;
  bad[9] = static_cast<char>(bad[9] ^ 0x55);
  bad[16] = static_cast<char>(bad[16] ^ 0x40);  // and a serial that the peer never gave out
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
  // A device refuses what is still under way; software lets it come in, and waits for it.
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
    CHECK(device_checks_keys());  // there nobody was asked, and it is noticed when it is used
  } catch (const Failure& failure) {
    CHECK(failure.kind == Failure::Kind::stale);
  }
  // Our own, that nobody can reach: at once.
  Memory private_memory(b, 22, 4096, 0);
  b.domain->deregister(22);
  CHECK(b.sink.releases.back() == 22);
}

// A peer that never heard of the deregistration, since it was not there: it asks when its connection breaks.
void test_old_descriptor() {
  Node a, b;
  Memory from(a, 10, 4096), to(b, 20, 4096);
  b.domain->deregister(20);
  CHECK(b.sink.releases.size() == 1);
  join(a, b);
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
  // and again, with the same domains
  join(a, b, 5, 6);
  Memory from(a, 11, 4096), to(b, 21, 4096);
  a.domain->register_remote(31, {5, 4096, to.key, {}});
  Batch batch({{from.address(), 0, 4096, 4, kPieceImmediate}}, 5, 11, 31);
  const auto lost_before = a.sink.failures_seen.size();
  CHECK(run(pair.both(), a, batch) && a.sink.failures_seen.size() == lost_before);
}

// A peer with two NICs where we have one. The second is paired with none of ours, and holds our keys all the same.
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
  // Nobody drives the second NIC, so it cannot say that it is done. The first can.
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

// What the device has taken in and told its sender of is told to us, too, when the sender is fenced before we look.
void test_arrived_before_fence() {
  if (!device_checks_keys()) return;  // in software nothing comes in unless it is driven
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

// Three nodes write, notify, read and message each other while regions come and go, and now and then a key is wrong,
// which breaks a connection. Whatever is reported as done has arrived, nothing arrives twice, everything ends.
void test_storm() {
  constexpr std::size_t kNodes = 3;
  constexpr std::size_t kNbytes = 256 << 10;
  const unsigned seed = std::random_device{}();
  std::printf("  seed %u\n", seed);
  std::mt19937 random(seed);
  std::vector<std::unique_ptr<Memory>> sources, targets,
      old;  // before the nodes, so that it outlives what writes to it
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<harness::Node*> all;
  for (std::size_t i = 0; i < kNodes; ++i) all.push_back(nodes.emplace_back(std::make_unique<Node>()).get());
  const auto peer = [](std::size_t i) { return static_cast<PeerNumber>(100 + i); };
  for (std::size_t i = 0; i < kNodes; ++i) {
    for (std::size_t j = 0; j < i; ++j) join(*all[i], *all[j], peer(j), peer(i));
  }
  RegionNumber next_region = 1;
  std::map<std::pair<std::size_t, std::size_t>, RegionNumber> remote;  // at i, of j's target
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
          if (kind == 99) {  // a key that nobody gave out
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
  CHECK(drive(all, releases));  // an answer that was lost with a connection is asked for again
  drive_for(all, 0.2);
  for (std::size_t i = 0; i < kNodes; ++i) {
    for (const auto& [counter, total] : all[i]->sink.totals) CHECK(counter == i);
    got[i] = all[i]->sink.totals[static_cast<std::uint32_t>(i)];
    CHECK(least[i] <= got[i] && got[i] <= least[i] + most[i]);
    CHECK(all[i]->sink.failed_peers.empty());
  }
  std::printf("  %zu batches, %zu failed, %zu regions taken back\n", ended, failed, released);
}

void test_half_connected() {
  Node a, b;
  const Endpoint ea = a.domain->connect(kB, std::nullopt);
  const Endpoint eb = b.domain->connect(kA, std::nullopt);
  a.domain->connect(kB, eb);  // b does not know a's end yet
  CHECK(drive({&a, &b}, [&] { return a.domain->send(kB, 1, "early") == Posted::more; }));
  drive_for({&a, &b}, 0.1);
  CHECK(b.sink.messages.empty());
  b.domain->connect(kA, ea);
  CHECK(drive({&a, &b}, [&] { return b.sink.messages.size() == 1; }));
}

// Whoever connects to the endpoint's port and says nothing yet: a peer on its way, or a stranger.
struct Caller {
  int fd;

  explicit Caller(const Endpoint& endpoint, int type = SOCK_STREAM) {
    const std::string address = libfabric::unpack_endpoint(endpoint.blob).address;
    sockaddr_storage to{};
    std::memcpy(&to, address.data(), address.size());
    fd = ::socket(to.ss_family, type | SOCK_CLOEXEC, 0);
    const auto* where = reinterpret_cast<const sockaddr*>(&to);
    const auto nbytes = static_cast<socklen_t>(address.size());
    CHECK((type == SOCK_DGRAM ? ::bind(fd, where, nbytes) : ::connect(fd, where, nbytes)) == 0);
  }
  ~Caller() { ::close(fd); }
  Caller(const Caller&) = delete;

  // The connection request of libfabric's tcp (ofi_ctrl_hdr, xnet_rdm_cm).
  void ask() const {
    struct {
      std::uint8_t version = 3, type = 0;
      std::uint16_t nbytes = htons(8);
      std::uint8_t unused[20] = {};
      std::uint64_t endian = 1;
      std::uint8_t protocol = 0, features = 0;
      std::uint16_t port = htons(7);
      std::uint32_t pid = htonl(7);
    } request;
    static_assert(sizeof request == 40);
    ::send(fd, &request, sizeof request, MSG_NOSIGNAL);
  }
  // Reads what has come, up to the end if there is one.
  [[nodiscard]] bool hung_up() const {
    pollfd one{fd, POLLIN, 0};
    std::array<char, 256> bytes;
    while (::poll(&one, 1, 0) == 1) {
      if (::recv(fd, bytes.data(), bytes.size(), MSG_DONTWAIT) <= 0) return true;
    }
    return false;
  }
};

std::size_t descriptor_count() {
  const std::filesystem::directory_iterator all("/proc/self/fd");
  return static_cast<std::size_t>(std::distance(begin(all), end(all)));
}

// An endpoint goes while a long message to it has come in part: ofi_rxm cuts what exceeds its buffers in segments.
void test_half_message() {
  Node b;
  const std::string longest(b.domain->attributes().max_message_nbytes, 'x');
  for (PeerNumber peer = 1; peer <= 20; ++peer) {
    Node a;
    join(a, b, kB, peer);
    CHECK(drive({&a, &b}, [&] { return a.domain->send(kB, 1, "first") == Posted::more; }));
    CHECK(drive({&a, &b}, [&] { return b.sink.messages.size() == 1; }));
    for (TransferId id = 2; a.domain->send(kB, id, longest) == Posted::more;) ++id;
    drive_for({&a}, 0.002);
    for (PeerNumber round = 0; round < peer / 2; ++round) b.domain->progress();
    b.domain->disconnect(peer, true);
    CHECK(drive({&b}, [&] { return b.sink.fences.size() == peer; }));
    a.domain->disconnect(kB, true);
    b.sink.messages.clear();
  }
}

// What ofi_rxm is told before it is used over verbs, and that nothing is where the library is too old for it.
void test_rxm_settings() {
  const auto refusal = [](const char* unproven) -> std::string {
    try {
      Node node(Settings{{"provider", "verbs;ofi_rxm"}, {"unproven", unproven}});
      return "";
    } catch (const Failure& failure) {
      CHECK(failure.kind == Failure::Kind::unavailable);
      return failure.what();
    }
  };
  const auto is_set = [](const char* variable, const char* value) {
    const char* found = std::getenv(variable);
    return value == nullptr ? found == nullptr : found != nullptr && found == std::string_view(value);
  };
  const bool too_old = refusal("0").find("before libfabric 2.7") != std::string::npos;
  CHECK(is_set("FI_UNIVERSE_SIZE", too_old ? nullptr : "16"));
  CHECK(refusal("1").find("breaks the contract") == std::string::npos);
  CHECK(is_set("FI_UNIVERSE_SIZE", "16"));
  CHECK(is_set("FI_OFI_RXM_USE_SRX", nullptr));  // else the next engine's choice would be this one's too
}

// An endpoint goes while connections to it are half made: accepted, and not asked for yet. libfabric forgets them, and
// comes back to them with what it has freed.
void test_half_made(const Settings& settings, bool lost) {
  if (!provider.starts_with("tcp")) return;
  Node node(settings);
  Caller elsewhere(node.domain->connect(1000, std::nullopt));
  drive_for({&node}, 0.01);
  const std::size_t before = descriptor_count();
  for (PeerNumber peer = 1; peer <= 20; ++peer) {
    const Endpoint endpoint = node.domain->connect(peer, std::nullopt);
    Caller silent(endpoint), gone(endpoint), asking(endpoint), datagrams(endpoint, SOCK_DGRAM);
    drive_for({&node}, 0.002);  // accepted
    Caller queued(endpoint);    // not even that
    asking.ask();
    ::shutdown(gone.fd, SHUT_RDWR);
    node.domain->disconnect(peer, lost);
    CHECK(drive({&node}, [&] { return node.sink.fences.size() == peer; }, 2));
    CHECK(silent.hung_up() && gone.hung_up() && asking.hung_up() && queued.hung_up());
    CHECK(!datagrams.hung_up());
    silent.ask();
    node.domain->connect(100 + peer, std::nullopt);
    drive_for({&node}, 0.002);
    node.domain->disconnect(100 + peer, true);
    node.sink.fences.pop_back();
  }
  CHECK(descriptor_count() == before);
  CHECK(!elsewhere.hung_up());
  elsewhere.ask();
  pollfd answer{elsewhere.fd, POLLIN, 0};
  CHECK(drive({&node}, [&] { return ::poll(&answer, 1, 0) == 1; }, 2));
  if (provider == "tcp") CHECK(!elsewhere.hung_up());  // ofi_rxm asks in other words
  const Endpoint last = node.domain->connect(1001, std::nullopt);
  Caller silent(last);
  drive_for({&node}, 0.002);
  node.domain.reset();
  CHECK(silent.hung_up() && elsewhere.hung_up());
}

// Nodes that connect, speak and part at any moment, both ends or one, while they still connect or after.
void test_partings() {
  const unsigned seed = std::random_device{}();
  std::printf("  seed %u\n", seed);
  std::mt19937 random(seed);
  Node a, b;
  Memory from(a, 10, 1 << 16), to(b, 20, 1 << 16);
  const std::size_t before = descriptor_count();
  std::size_t fenced = 0;
  constexpr PeerNumber kPartings = 600;
  for (PeerNumber peer = 1; peer <= kPartings; ++peer) {
    const RegionNumber remote = 100 + peer;
    const auto progress = [&](unsigned most) {
      for (auto left = random() % most; left > 0; --left) (random() % 2 == 0 ? a : b).domain->progress();
    };
    const Endpoint ea = a.domain->connect(peer, std::nullopt);
    const Endpoint eb = b.domain->connect(peer, std::nullopt);
    a.domain->connect(peer, eb);
    progress(4);
    const bool both = random() % 4 != 0;
    if (both) b.domain->connect(peer, ea);
    a.domain->register_remote(remote, {peer, to.bytes.size(), to.key, {}});
    Batch there(std::vector<Piece>(8, Piece{from.address(), 0, 1 << 12, 1, kPieceImmediate}), peer, 10, remote);
    Batch back({{0, 0, 0, 1, kPieceImmediate}}, peer, 0, 0);
    for (auto left = random() % 12; left > 0; --left) {
      if (!there.flow.exhausted()) a.domain->post(there.flow, 8);
      if (both && !back.flow.exhausted()) b.domain->post(back.flow, 8);
      if (random() % 4 == 0) a.domain->send(peer, peer, "hello");
      progress(6);
    }
    std::vector<harness::Node*> leaving{&a, &b};
    if (random() % 2 == 0) std::swap(leaving[0], leaving[1]);
    for (harness::Node* node : leaving) {
      node->domain->disconnect(peer, random() % 8 != 0);
      progress(6);
    }
    there.flow.failed = back.flow.failed = true;
    const auto ended = [&] { return a.sink.fences.size() == peer && b.sink.fences.size() == peer; };
    CHECK(drive(leaving, ended, 3));
    CHECK(there.flow.in_flight == 0 && back.flow.in_flight == 0);
    fenced += ended();
    a.domain->deregister(remote);
  }
  drive_for({&a, &b}, 0.1);
  CHECK(descriptor_count() == before);
  a.domain->deregister(10);
  b.domain->deregister(20);
  CHECK(a.domain->handles() == 0 && b.domain->handles() == 0);
  std::printf("  %zu of %u fenced on both sides\n", fenced, kPartings);
}

// A message lies in the queue, unread, when its peer is fenced: what it came in through is gone when it is read.
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
  // While it is not connected, posting drives libfabric, and nothing reads its queue.
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

// Blocks on the fd as the worker does; a byte from elsewhere must wake it.
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

// Endpoints are gone that the queue had to wait for.
void test_arm_after_partings() {
  Node a, b;
  for (PeerNumber peer = 1; peer <= 20; ++peer) {
    join(a, b, peer, peer);
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

// ------------------------------------------------------------------------------------------------- two processes

void put(int fd, const std::string& bytes) {
  const auto nbytes = static_cast<std::uint32_t>(bytes.size());
  if (::write(fd, &nbytes, 4) != 4 || ::write(fd, bytes.data(), bytes.size()) != static_cast<ssize_t>(bytes.size())) {
    std::printf("  (the other process is gone)\n");
  }
}

std::string get(int fd) {
  std::uint32_t nbytes = 0;
  if (::read(fd, &nbytes, 4) != 4) return {};
  std::string bytes(nbytes, '\0');
  for (std::size_t done = 0; done < nbytes;) {
    const ssize_t got = ::read(fd, bytes.data() + done, nbytes - done);
    if (got <= 0) return {};
    done += static_cast<std::size_t>(got);
  }
  return bytes;
}

bool readable(int fd) {
  pollfd one{fd, POLLIN, 0};
  return ::poll(&one, 1, 0) > 0;
}

// Writes 64 MiB of 0xAB over and over into region `key` until it fails; then says how, and why.
int writer(int fd) {
  Node node;
  put(fd, node.domain->connect(1, std::nullopt).blob);
  node.domain->connect(1, Endpoint{get(fd), {}});
  const std::string key = get(fd);
  Memory from(node, 10, 64 << 20);
  std::fill(from.bytes.begin(), from.bytes.end(), std::uint8_t{0xAB});
  node.domain->register_remote(30, {1, from.bytes.size(), key, {}});
  for (std::uint32_t i = 1; node.sink.failures_seen.empty(); ++i) {
    Batch batch({{from.address(), 0, from.bytes.size(), i, kPieceImmediate}}, 1, 10, 30);
    while (!batch.over()) {
      if (!batch.flow.exhausted()) node.domain->post(batch.flow, 1);
      node.domain->progress();
      if (readable(fd) && get(fd) == "stop") {
        node.domain->disconnect(1, true);
        batch.flow.failed = true;
      }
    }
  }
  const Outcome& outcome = node.sink.failures_seen.front();
  put(fd, std::to_string(static_cast<int>(outcome.status)) + " " + std::to_string(outcome.code) + " " + outcome.reason);
  return 0;
}

struct Child {
  pid_t pid;
  int fd;
};

Child spawn(const char* self) {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) std::abort();
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::close(fds[0]);
    const std::string fd = std::to_string(fds[1]);
    ::execl(self, self, provider.c_str(), search_path.c_str(), fd.c_str(), nullptr);
    std::_Exit(127);
  }
  ::close(fds[1]);
  return {pid, fds[0]};
}

// Returns once it stands still: a signal takes effect when its process runs next, and it may write on until then.
void freeze(const Child& child) {
  ::kill(child.pid, SIGSTOP);
  ::waitpid(child.pid, nullptr, WUNTRACED);
}

bool wait_until_inside(Node& node, const Memory& to) {
  // Inside a write: its head has arrived and its tail has not.
  return drive({&node}, [&] { return to.bytes[1 << 20] == 0xAB && to.bytes.back() != 0xAB; }, 20);
}

// Frozen inside a write: nothing of it may land once fenced() was said, whatever it does when it thaws.
void test_frozen_writer(const char* self, bool deregister) {
  const Child child = spawn(self);
  Node node;
  const Endpoint far{get(child.fd), {}};
  put(child.fd, node.domain->connect(1, std::nullopt).blob);
  Memory to(node, 20, 64 << 20);
  node.domain->connect(1, far);
  put(child.fd, to.key);
  CHECK(wait_until_inside(node, to));
  freeze(child);
  node.domain->progress();
  CHECK(to.bytes.back() != 0xAB);
  if (deregister) {
    // Taking the region back must wait: the write is in progress, registration or not.
    node.domain->deregister(20);
    drive_for({&node}, 0.3);
    CHECK(node.sink.releases.empty() != device_checks_keys());
  }
  const auto start = Clock::now();
  node.domain->disconnect(1, true);
  std::printf("  fenced after %.3f ms\n", std::chrono::duration<double>(Clock::now() - start).count() * 1e3);
  CHECK(node.sink.fences.size() == 1);
  CHECK(node.sink.releases.size() == (deregister ? 1 : 0));
  std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0x55});
  drive_for({&node}, 0.1);
  ::kill(child.pid, SIGCONT);
  drive_for({&node}, 1.0);
  std::size_t touched = 0;
  for (const auto byte : to.bytes) touched += byte != 0x55;
  CHECK(touched == 0);
  CHECK(node.domain->handles() == (deregister ? 0 : 1));
  if (!deregister) put(child.fd, "stop");  // as its engine would, told that it was given up
  const std::string end = get(child.fd);
  std::printf("  the thawed writer: %s\n", end.c_str());
  // With the region taken back it may have read that, too, before the connection broke.
  CHECK(end[0] == '1' || (deregister && end[0] == '2'));
  ::waitpid(child.pid, nullptr, 0);
  ::close(child.fd);
}

void test_killed_writer(const char* self) {
  const Child child = spawn(self);
  Node node;
  const Endpoint far{get(child.fd), {}};
  put(child.fd, node.domain->connect(1, std::nullopt).blob);
  Memory to(node, 20, 64 << 20), from(node, 21, 4096);
  node.domain->connect(1, far);
  put(child.fd, to.key);
  CHECK(wait_until_inside(node, to));
  ::kill(child.pid, SIGKILL);
  ::waitpid(child.pid, nullptr, 0);
  drive_for({&node}, 0.2);
  node.domain->deregister(20);
  drive_for({&node}, 0.2);
  CHECK(node.sink.releases.empty() != device_checks_keys());  // nobody has said yet that it is dead
  node.domain->disconnect(1, true);
  CHECK(node.sink.fences.size() == 1 && node.sink.releases.size() == 1);
  ::close(child.fd);
}

// The reader dies with our writes under way: they end as peer_lost, whether we are told of its death or not.
void test_killed_target(const char* self, bool told) {
  const Child child = spawn(self);
  Node node(Settings{{"verdict_s", "1"}});
  const Endpoint far{get(child.fd), {}};
  put(child.fd, node.domain->connect(1, std::nullopt).blob);
  Memory to(node, 20, 64 << 20);
  node.domain->connect(1, far);
  put(child.fd, to.key);
  CHECK(wait_until_inside(node, to));
  freeze(child);
  Batch batch(std::vector<Piece>(20, Piece{0, 0, 0, 7, kPieceImmediate}), 1, 0, 0);
  drive({&node}, [&] { return batch.flow.exhausted() || (node.domain->post(batch.flow, 20), false); }, 2);
  CHECK(batch.flow.in_flight == 20);
  ::kill(child.pid, SIGKILL);
  ::waitpid(child.pid, nullptr, 0);
  drive_for({&node}, 0.3);
  CHECK(node.sink.failures_seen.empty());
  if (told) node.domain->disconnect(1, true);
  CHECK(drive({&node}, [&] { return batch.over(); }, 5));
  CHECK(node.sink.failed_pieces == 20);
  for (const auto& outcome : node.sink.failures_seen) CHECK(outcome.status == Status::peer_lost);
  CHECK(node.sink.failed_peers.size() == (told ? 0 : 1));
  ::close(child.fd);
}

}  // namespace

int main(int argc, char** argv) {
  ::setvbuf(stdout, nullptr, _IOLBF, 0);
  ::signal(SIGPIPE, SIG_IGN);
  if (argc > 1) provider = argv[1];
  search_path = argc > 2 ? argv[2] : "";
  if (const char* delivery = std::getenv("DELIVERY")) extra["delivery"] = delivery;
  if (const char* fabric = std::getenv("FABRIC")) extra["fabric"] = fabric;
  if (const char* endpoints = std::getenv("ENDPOINTS")) extra["endpoints"] = endpoints;
  try {
    if (argc > 3) return writer(std::atoi(argv[3]));
    {
      Node node;
      const auto& attributes = node.domain->attributes();
      std::printf("%s %s: %s; pieces <= %zu, messages <= %zu\n", attributes.provider.c_str(), attributes.name.c_str(),
                  attributes.protocol.c_str(), attributes.max_piece_nbytes, attributes.max_message_nbytes);
    }
    const std::vector<std::pair<const char*, std::function<void()>>> tests{
        {"writes", test_writes},
        {"pages", test_pages},
        {"reads", test_reads},
        {"messages", test_messages},
        {"bare immediates", test_bare_immediates},
        {"bundles", test_bundles},
        {"bundled counts", test_bundled_counts},
        {"bundled failures", test_bundled_failures},
        {"malformed", test_malformed},
        {"bad key", test_bad_key},
        {"deregister", test_deregister},
        {"old descriptor", test_old_descriptor},
        {"surplus NIC", test_surplus_nic},
        {"arrived before the fence", test_arrived_before_fence},
        {"disconnect, lost", [] { test_disconnect(true); }},
        {"disconnect, goodbye", [] { test_disconnect(false); }},
        {"storm", test_storm},
        {"half connected", test_half_connected},
        {"half a message", test_half_message},
        {"half made, lost", [] { test_half_made({}, true); }},
        {"half made, goodbye", [] { test_half_made({}, false); }},
        {"half made, IPv6", [] { test_half_made({{"address", "::1"}}, true); }},
        {"partings", test_partings},
        {"settings of ofi_rxm", test_rxm_settings},
        {"unread message", test_unread_message},
        {"nobody there", test_nobody_there},
        {"arm", test_arm},
        {"arm after partings", test_arm_after_partings},
        {"frozen writer", [argv] { test_frozen_writer(argv[0], false); }},
        {"frozen writer, region taken back", [argv] { test_frozen_writer(argv[0], true); }},
        {"killed writer", [argv] { test_killed_writer(argv[0]); }},
        {"killed target, told", [argv] { test_killed_target(argv[0], true); }},
        {"killed target, untold", [argv] { test_killed_target(argv[0], false); }},
    };
    const char* only = std::getenv("ONLY");
    for (const auto& [name, test] : tests) {
      if (only != nullptr && std::string(name).find(only) == std::string::npos) continue;
      std::printf("%s\n", name);
      test();
    }
  } catch (const Failure& failure) {
    std::printf("FAILED: %s (%ld) %s\n", failure.what(), static_cast<long>(failure.code), failure.hint.c_str());
    return 1;
  }
  std::printf(failures == 0 ? "all well\n" : "%d FAILED\n", failures);
  return failures == 0 ? 0 : 1;
}
