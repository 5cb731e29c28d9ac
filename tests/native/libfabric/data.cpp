// Data path of the libfabric domain: writes, reads, messages, bundles, malformed input.
#include <algorithm>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "fixture.h"

namespace fabric_test {

namespace {

// Providers that take one piece per operation get one; the others get as many adjacent pieces as fit.
bool bundles() { return provider.starts_with("tcp"); }

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

// Random sizes, several counters, pieces without count or payload: bytes, counts and reports must not depend on what is
// bundled.
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
    // Payload before its count. Over a stream, the payload of earlier pieces without a count as well.
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

  // Reads are bundled, too.
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

// One immediate carries up to 256 counts of one counter.
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
    if (!keeps_order()) std::ranges::sort(b.sink.counts, std::greater<>());  // the order of the expected values below
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

// An invalid piece in the middle fails alone: the pieces before it arrive, those after it are not posted. What the peer
// refuses, or does not live to receive, fails once for every piece in the bundle.
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
  // With a key that the peer refuses.
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
  // With a peer that is gone.
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
  b.domain->disconnect(kA, true);  // operations in flight to `to` must not outlive it
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

}  // namespace

Tests data_tests() {
  return {
      {"writes", test_writes},
      {"pages", test_pages},
      {"reads", test_reads},
      {"messages", test_messages},
      {"bare immediates", test_bare_immediates},
      {"bundles", test_bundles},
      {"bundled counts", test_bundled_counts},
      {"bundled failures", test_bundled_failures},
      {"malformed", test_malformed},
  };
}

}  // namespace fabric_test
