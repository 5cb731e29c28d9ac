// Test of the tcp domain without the core: a fake sink, hand-made flows, and raw sockets that send arbitrary bytes.
//   g++ -std=c++20 -O1 backends/tcp/*.cpp backends/core/native_backend.cpp tests/native/tcp_test.cpp -o tcp_test
//   ./tcp_test [seed]
#include <poll.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "../../backends/core/handles.h"
#include "../../backends/tcp/domain.h"
#include "../../backends/tcp/endpoint.h"
#include "harness.h"

using namespace aio;
using namespace aio::tcp;
using harness::Clock, harness::FakeSink, harness::drive, harness::drive_for, harness::failures, harness::join,
    harness::run;

namespace {

std::mt19937_64 random_source;

struct Node : harness::Node {
  explicit Node(const Options& options = {}) {
    domain = std::move(open_domains(sink, options).front());
    budget = 256;
  }
};

struct Memory : harness::Memory {
  Memory(Node& node, RegionNumber number, std::size_t nbytes,
         unsigned access = access_remote_read | access_remote_write)
      : harness::Memory(node, number, nbytes, access, 0xEE) {}
  void fill() {
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random_source());
  }
};

constexpr PeerNumber kPeer = 1;
constexpr RegionNumber kFrom = 10, kTo = 20, kRemote = 30;
constexpr std::uint32_t kCounter = 5;

struct Batch : harness::Batch {
  explicit Batch(std::vector<Piece> which, Op op = Op::write, RegionNumber remote = kRemote)
      : harness::Batch(std::move(which), kPeer, kFrom, remote, op) {}
};

struct Pair {
  Node a, b;
  explicit Pair(const Options& options = {}) : a(options), b(options) { join(a, b, kPeer, kPeer); }
  std::vector<harness::Node*> both() { return {&a, &b}; }
};

std::vector<Piece> cut(const Memory& from, std::size_t nbytes) {
  std::vector<Piece> pieces;
  for (std::uint64_t at = 0; at + nbytes <= from.bytes.size(); at += nbytes) {
    pieces.push_back({from.address() + at, at, nbytes, kCounter, kPieceImmediate});
  }
  return pieces;
}

void test_writes_and_reads() {
  for (const char* address : {"127.0.0.1", "::1"}) {
    std::optional<Pair> pair;
    try {
      pair.emplace(Options{{"address", address}});
    } catch (const Failure& failure) {
      std::printf("  skipped: %s\n", failure.what());
      continue;
    }
    auto& [a, b] = *pair;
    Memory from(a, kFrom, 24 << 20), to(b, kTo, from.bytes.size() + 64);
    from.fill();
    a.domain->register_remote(kRemote, {kPeer, to.bytes.size(), to.key, {}});
    std::uint64_t due = 0;
    for (const std::size_t nbytes :
         {1ul << 10, 4096ul, 65536ul, (1ul << 20) - 1, 1ul << 20, (1ul << 20) + 1, 24ul << 20}) {
      std::fill(to.bytes.begin(), to.bytes.end(), std::uint8_t{0xEE});
      Batch batch(cut(from, nbytes));
      due += batch.pieces.size();
      CHECK(run(pair->both(), a, batch));
      CHECK(drive(pair->both(), [&] { return b.sink.totals[kCounter] == due; }));
      const std::size_t whole = batch.pieces.size() * nbytes;
      CHECK(std::memcmp(to.bytes.data(), from.bytes.data(), whole) == 0);
      CHECK(to.bytes[whole] == 0xEE && to.bytes.back() == 0xEE);
    }
    from.bytes.assign(from.bytes.size(), 0);
    for (std::uint8_t& byte : to.bytes) byte = static_cast<std::uint8_t>(random_source());
    for (const std::size_t nbytes : {4096ul, 24ul << 20}) {
      Batch batch(cut(from, nbytes), Op::read);
      for (Piece& piece : batch.pieces) piece.flags = 0;
      CHECK(run(pair->both(), a, batch));
      CHECK(std::memcmp(to.bytes.data(), from.bytes.data(), from.bytes.size()) == 0);
    }
    CHECK(a.sink.failures_seen.empty() && a.sink.broken.empty() && b.sink.broken.empty());
    CHECK(b.sink.totals[kCounter] == due);
  }
}

void test_messages() {
  Pair pair;
  auto& [a, b] = pair;
  std::vector<std::pair<PeerNumber, std::string>> all;
  drive_for(pair.both(), 0.05);
  for (TransferId id = 1; id <= 200; ++id) {
    const auto& payload = all.emplace_back(kPeer, std::string(id % 50 == 0 ? 0 : random_source() % kMaxMessageNbytes,
                                                              static_cast<char>(id)))
                              .second;
    CHECK(drive(pair.both(), [&] { return a.domain->send(kPeer, id, payload) == Posted::more; }));
  }
  CHECK(drive(pair.both(), [&] { return b.sink.messages.size() == all.size() && a.sink.sents.size() == all.size(); }));
  CHECK(b.sink.messages == all);
  a.domain->send(kPeer, 999, std::string(kMaxMessageNbytes + 1, 'x'));
  CHECK(a.sink.sents[999].code == EMSGSIZE);
}

// A region is revoked in the middle of a write: at once, while writes to other regions go on.
void test_deregister() {
  Pair pair;
  auto& [a, b] = pair;
  Memory from(a, kFrom, 8 << 20), to(b, kTo, 8 << 20), other(b, kTo + 1, 4096),
      readable(b, kTo + 2, 4096, access_remote_read);
  for (const auto& [number, memory] : std::map<RegionNumber, Memory*>{{kRemote, &to}, {31, &other}, {32, &readable}}) {
    a.domain->register_remote(number, {kPeer, memory->bytes.size(), memory->key, {}});
  }
  Batch first(cut(from, 4096)), unrelated({{from.address(), 0, 4096, kCounter, kPieceImmediate}}, Op::write, 31);
  CHECK(run(pair.both(), a, first));
  CHECK(a.sink.failures_seen.empty());
  Batch large(cut(from, 8 << 20));
  a.domain->post(large.flow, 256);
  drive({&b}, [&] { return to.bytes[0] == from.bytes[0]; }, 0.1);
  b.domain->deregister(kTo);
  CHECK(b.sink.releases.size() == 1);
  to.bytes.assign(to.bytes.size(), 0xAA);
  CHECK(run(pair.both(), a, unrelated) && drive(pair.both(), [&] { return large.over(); }));
  CHECK(a.sink.failures_seen.size() == 1 && a.sink.failures_seen[0].status == Status::stale_region);
  const std::size_t before = a.sink.failures_seen.size();
  Batch late(cut(from, 1 << 20));
  CHECK(run(pair.both(), a, late));
  CHECK(a.sink.failures_seen.size() > before && a.sink.failures_seen.back().status == Status::stale_region);
  b.domain->deregister(kTo + 1);
  a.domain->register_remote(33, {kPeer, other.bytes.size(), other.key, {}});
  Batch again({{from.address(), 0, 64, kCounter, kPieceImmediate}}, Op::write, 33);
  Batch read({{from.address(), 0, 64, 0, 0}}, Op::read, 33);
  CHECK(run(pair.both(), a, again) && a.sink.failures_seen.back().status == Status::stale_region);
  a.sink.failures_seen.clear();
  CHECK(run(pair.both(), a, read) && a.sink.failures_seen.back().status == Status::stale_region);
  Batch forbidden({{from.address(), 0, 64, 0, 0}}, Op::write, 32);
  CHECK(run(pair.both(), a, forbidden) && a.sink.failures_seen.back().code == EACCES);
  CHECK(std::ranges::all_of(to.bytes, [](std::uint8_t byte) { return byte == 0xAA; }));
  CHECK(a.sink.broken.empty() && b.sink.broken.empty());
}

// Everything that ended before a goodbye is counted before the fence; a lost peer is fenced at once.
void test_disconnect() {
  for (const bool lost : {false, true}) {
    Pair pair;
    auto& [a, b] = pair;
    Memory from(a, kFrom, 256 << 10), to(b, kTo, 256 << 10);
    a.domain->register_remote(kRemote, {kPeer, to.bytes.size(), to.key, {}});
    Batch proof({{from.address(), 0, 1, kCounter, kPieceImmediate}});
    CHECK(run(pair.both(), a, proof));
    Batch batch(cut(from, 4096));
    while (a.domain->post(batch.flow, 256) == Posted::more && !batch.flow.exhausted()) {
    }
    const std::uint32_t left = batch.flow.next;  // all of it, except for what the kernel does not take
    b.domain->disconnect(kPeer, lost);
    if (lost) {
      CHECK(b.sink.fences.size() == 1);
      const auto seen = to.bytes;
      CHECK(drive(pair.both(), [&] { return !a.sink.broken.empty(); }));
      CHECK(to.bytes == seen);
      CHECK(a.sink.broken.front().reason.find("reset") != std::string::npos);
    } else {
      CHECK(drive(pair.both(), [&] { return !b.sink.fences.empty(); }));
      CHECK(b.sink.totals[kCounter] == left + 1);
      CHECK(a.sink.broken.empty());
    }
    a.domain->disconnect(kPeer, lost);
    CHECK(drive(pair.both(), [&] { return a.sink.fences.size() == 1; }));
    a.domain->deregister(kFrom);
    b.domain->deregister(kTo);
    CHECK(a.domain->handles() == 0 && b.domain->handles() == 0);
  }
}

// ------------------------------------------------------------------------------------------------------ raw sockets

Fd dial(const EndpointBlob& blob) {
  Address address = read_address(blob);
  Fd fd(::socket(address.family(), SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (::connect(fd.get(), address.get(), address.nbytes) != 0) std::perror("connect");
  return fd;
}

void send_all(const Fd& fd, const void* bytes, std::size_t nbytes) {
  for (std::size_t at = 0; at < nbytes;) {
    const ssize_t sent =
        ::send(fd.get(), static_cast<const char*>(bytes) + at, nbytes - at, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) return;
    at += static_cast<std::size_t>(sent);
  }
}

// A socket that has completed the handshake.
struct Raw {
  Fd fd;

  explicit Raw(Node& node) {
    const auto blob = unpack<EndpointBlob>(node.domain->connect(kPeer, std::nullopt).blob, "test");
    EndpointBlob own = blob;
    own.token = {};  // the smaller name dials
    own.token.secret[0] = 7;
    node.domain->connect(kPeer, Endpoint{pack(own), {}});
    fd = dial(blob);
    const Hello hello{kMagic, 0, blob.token, own.token.name};
    send_all(fd, &hello, sizeof hello);
    Welcome welcome{};
    drive({&node}, [&] { return ::recv(fd.get(), &welcome, sizeof welcome, MSG_DONTWAIT) == sizeof welcome; });
    CHECK(welcome.magic == kMagic && welcome.secret == own.token.secret);
  }
};

template <class Record>
void put(std::vector<std::byte>& bytes, const Record& record) {
  append_record(bytes, record);
}

std::vector<std::byte> plausible(const KeyBlob& key, std::uint64_t& number) {
  std::vector<std::byte> bytes;
  FrameHeader header{static_cast<Kind>(random_source() % 9 + 1),
                     static_cast<std::uint8_t>(random_source() % 4),
                     0,
                     key.slot,
                     key.secret,
                     random_source() % 4};
  if (header.kind == Kind::write || header.kind == Kind::read) {
    header.count = static_cast<std::uint16_t>(random_source() % 5 + 1);
    if (header.kind == Kind::write) header.number = ++number;
    if (random_source() % 8 == 0) ++header.slot;
    put(bytes, header);
    std::size_t payload = 0;
    for (int i = 0; i < header.count; ++i) {
      const auto nbytes = static_cast<std::uint32_t>(random_source() % 300);
      const std::uint64_t offset = random_source() % 5 == 0 ? random_source() : random_source() % 4096;
      if (header.kind == Kind::read) {
        put(bytes, ReadPiece{offset, nbytes});
        continue;
      }
      put(bytes, WritePiece{offset, nbytes | (random_source() % 2 ? WritePiece::kCounts : 0), kCounter});
      payload += nbytes;
    }
    bytes.insert(bytes.end(), payload, std::byte{0x55});
    return bytes;
  }
  if (header.kind == Kind::message || header.kind == Kind::data) header.value = random_source() % 1000;
  put(bytes, header);
  if (header.kind == Kind::message) bytes.insert(bytes.end(), header.value, std::byte{0x66});
  return bytes;
}

// Whatever an authenticated peer sends: memory outside of its region stays unchanged, and the connection ends with a
// reason or goes on.
void test_garbage(int rounds) {
  int ended = 0;
  for (int round = 0; round < rounds; ++round) {
    Node node;
    Memory granted(node, kTo, 4096), secret(node, kTo + 1, 4096);
    const auto key = unpack<KeyBlob>(granted.key, "test");
    Raw raw(node);
    std::uint64_t number = 0;
    std::vector<std::byte> bytes;
    for (int frame = 0; frame < 20; ++frame) {
      const auto more = plausible(key, number);
      bytes.insert(bytes.end(), more.begin(), more.end());
    }
    for (std::uint64_t flips = random_source() % 3; flips > 0; --flips) {
      bytes[random_source() % bytes.size()] ^= static_cast<std::byte>(1u << random_source() % 8);
    }
    if (round % 4 == 0) {
      for (std::byte& byte : bytes) byte = static_cast<std::byte>(random_source());
    }
    for (std::size_t at = 0; at < bytes.size();) {  // in parts of random length
      const std::size_t part = std::min<std::size_t>(random_source() % 700 + 1, bytes.size() - at);
      send_all(raw.fd, bytes.data() + at, part);
      at += part;
      for (int i = 0; i < 3; ++i) node.domain->progress();
      if (random_source() % 50 == 0) node.domain->deregister(kTo);
    }
    drive_for({&node}, 0.002);
    ended += !node.sink.broken.empty();
    CHECK(std::ranges::all_of(secret.bytes, [](std::uint8_t byte) { return byte == 0xEE; }));
    for (const Outcome& outcome : node.sink.broken) CHECK(outcome.code == EPROTO);
    if (!node.sink.releases.empty()) {
      const auto seen = granted.bytes;
      drive_for({&node}, 0.001);
      CHECK(seen == granted.bytes);
    }
    node.domain->disconnect(kPeer, true);
    CHECK(node.sink.fences.size() == 1);
  }
  std::printf("  %d of %d ended the connection\n", ended, rounds);
  CHECK(ended > rounds / 2);
}

// Revoked in the middle of a write: released at once, and no further byte is placed.
void test_deregister_inside_a_frame() {
  Node node;
  Memory memory(node, kTo, 4096);
  const auto key = unpack<KeyBlob>(memory.key, "test");
  Raw raw(node);
  std::vector<std::byte> bytes;
  put(bytes, FrameHeader{Kind::write, kWantsAck, 1, key.slot, key.secret, 1});
  put(bytes, WritePiece{0, 4096 | WritePiece::kCounts, kCounter});
  bytes.insert(bytes.end(), 1000, std::byte{0x55});
  send_all(raw.fd, bytes.data(), bytes.size());
  CHECK(drive({&node}, [&] { return memory.bytes[999] == 0x55; }));
  node.domain->deregister(kTo);
  CHECK(node.sink.releases.size() == 1);
  bytes.assign(3096, std::byte{0x66});
  send_all(raw.fd, bytes.data(), bytes.size());
  FrameHeader answers[2];
  CHECK(drive({&node}, [&] { return ::recv(raw.fd.get(), answers, sizeof answers, MSG_DONTWAIT) == sizeof answers; }));
  CHECK(answers[0].kind == Kind::refused && answers[0].flags == 1 && answers[0].number == 1);
  CHECK(answers[1].kind == Kind::ack && answers[1].number == 1);
  CHECK(memory.bytes[1000] == 0xEE && node.sink.totals.empty());
}

void test_peer_that_does_not_read() {
  Node node(Options{{"post_deadline_s", "0.2"}});
  Memory from(node, kFrom, 64 << 20);
  Raw raw(node);
  const std::string key = pack(KeyBlob{kMagic, 0, 1, from.bytes.size(), 3, 0});
  node.domain->register_remote(kRemote, {kPeer, from.bytes.size(), key, {}});
  Batch batch(cut(from, 64 << 20));
  const auto began = Clock::now();
  CHECK(run({&node}, node, batch));
  CHECK(std::chrono::duration<double>(Clock::now() - began).count() < 5);
  CHECK(node.sink.broken.size() == 1 && node.sink.broken[0].code == ETIMEDOUT);
  CHECK(node.sink.failures_seen.size() == 1 && node.sink.failures_seen[0].code == ETIMEDOUT);
}

// Unauthenticated connections: what they send has no effect, their number is limited, and a peer still gets in.
void test_acceptor() {
  Node node;
  const auto blob = unpack<EndpointBlob>(node.domain->connect(kPeer, std::nullopt).blob, "test");
  std::vector<Fd> silent;
  for (int i = 0; i < 600; ++i) {
    silent.push_back(dial(blob));
    if (i % 16 == 0) node.domain->progress();
  }
  drive_for({&node}, 0.05);
  int open = 0;
  for (const Fd& fd : silent) {
    char byte = 0;
    open += ::recv(fd.get(), &byte, 1, MSG_DONTWAIT) < 0 && errno == EAGAIN;
  }
  CHECK(open > 0 && open <= 256);
  for (int i = 0; i < 200; ++i) {
    const Fd fd = dial(blob);
    Hello hello{kMagic, 0, blob.token, {}};
    reinterpret_cast<std::uint8_t*>(&hello)[random_source() % 40] ^=
        static_cast<std::uint8_t>(1u << random_source() % 8);
    send_all(fd, &hello, sizeof hello);
    char byte = 0;
    ssize_t got = -1;
    CHECK(drive({&node}, [&] { return (got = ::recv(fd.get(), &byte, 1, MSG_DONTWAIT)) >= 0 || errno == ECONNRESET; }));
    CHECK(got <= 0);
  }
  const Raw raw(node);
  CHECK(node.sink.broken.empty());
}

// Another process listens at the peer's address.
void test_a_wrong_listener() {
  Node node, other;
  auto far = unpack<EndpointBlob>(other.domain->connect(kPeer, std::nullopt).blob, "test");
  Address address = *parse_address("127.0.0.1");
  const Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  CHECK(::bind(listener.get(), address.get(), address.nbytes) == 0 && ::listen(listener.get(), 1) == 0);
  ::getsockname(listener.get(), address.get(), &address.nbytes);
  tcp::write_address(far, address);
  far.token.name.fill(0xFF);  // the larger name is dialed
  node.domain->connect(kPeer, Endpoint{pack(far), {}});
  const Fd fd(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  const Welcome welcome{kMagic, 0, {}};
  send_all(fd, &welcome, sizeof welcome);
  CHECK(drive({&node}, [&] { return !node.sink.broken.empty(); }));
  CHECK(node.sink.broken[0].code == EACCES);
}

void test_options() {
  FakeSink sink;
  const std::vector<Options> wrong = {
      {{"address", "localhost"}}, {{"address", "0.0.0.0"}}, {{"address", "::"}},
      {{"rails", "0"}},           {{"rails", "9"}},         {{"rails", "1.5"}},
      {{"revoke_s", "-1"}},       {{"depth", "3"}},         {{"address", "127.0.0.1,"}, {"rails", "x"}}};
  for (const Options& options : wrong) {
    bool refused = false;
    try {
      open_domains(sink, options);
    } catch (const Failure& failure) {
      refused = failure.kind == Failure::Kind::usage;
    }
    CHECK(refused);
  }
  bool unavailable = false;
  try {
    open_domains(sink, {{"address", "203.0.113.7"}});
  } catch (const Failure& failure) {
    unavailable = failure.kind == Failure::Kind::unavailable;
  }
  CHECK(unavailable);
  CHECK(open_domains(sink, {{"address", "127.0.0.1,127.0.0.2"}}).size() == 2);
}

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : std::random_device()();
  random_source.seed(seed);
  std::printf("seed %llu\n", static_cast<unsigned long long>(seed));
  const std::vector<std::pair<const char*, std::function<void()>>> tests = {
      {"options", test_options},
      {"writes and reads", test_writes_and_reads},
      {"messages", test_messages},
      {"deregister", test_deregister},
      {"disconnect", test_disconnect},
      {"deregister inside a frame", test_deregister_inside_a_frame},
      {"a peer that does not read", test_peer_that_does_not_read},
      {"acceptor", test_acceptor},
      {"a wrong listener", test_a_wrong_listener},
      {"garbage", [] { test_garbage(400); }},
  };
  for (const auto& [name, test] : tests) {
    std::printf("%s\n", name);
    test();
  }
  std::printf(failures == 0 ? "ok\n" : "%d checks failed\n", failures);
  return failures == 0 ? 0 : 1;
}
