// Connections that are half made, break, or close while messages are incomplete; settings of ofi_rxm.
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include "fixture.h"

namespace fabric_test {

namespace {

// A socket that connects to the endpoint's port and sends nothing yet: a connecting peer, or a port scan.
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

  // Sends the connection request of libfabric's tcp (ofi_ctrl_hdr, xnet_rdm_cm).
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
  // Reads what has arrived, up to the end of the stream if there is one.
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

void test_half_connected() {
  Node a, b;
  const Endpoint ea = a.domain->connect(kB, std::nullopt);
  const Endpoint eb = b.domain->connect(kA, std::nullopt);
  a.domain->connect(kB, eb);  // b does not know a's endpoint yet
  CHECK(drive({&a, &b}, [&] { return a.domain->send(kB, 1, "early") == Posted::more; }));
  drive_for({&a, &b}, 0.1);
  CHECK(b.sink.messages.empty());
  b.domain->connect(kA, ea);
  CHECK(drive({&a, &b}, [&] { return b.sink.messages.size() == 1; }));
}

// An endpoint is closed while a long message to it is incomplete: ofi_rxm sends messages longer than its buffers in
// segments.
void test_half_message() {
  Node b;
  const std::string longest(b.domain->attributes().max_message_nbytes, 'x');
  for (PeerNumber peer = 1; peer <= 20; ++peer) {
    Node a;
    connect_nodes(a, b, kB, peer);
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

// Defaults that are set for ofi_rxm over verbs before it is used, and that nothing is set if the library is too old for
// it.
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
  CHECK(is_set("FI_OFI_RXM_USE_SRX", nullptr));  // the next engine's default would depend on this one
}

// An endpoint is closed while connections to it are accepted but have sent no request. libfabric forgets them, and
// later follows pointers to what it has freed.
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
    Caller queued(endpoint);    // not even accepted
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
  if (provider == "tcp") CHECK(!elsewhere.hung_up());  // ofi_rxm's request has another format
  const Endpoint last = node.domain->connect(1001, std::nullopt);
  Caller silent(last);
  drive_for({&node}, 0.002);
  node.domain.reset();
  CHECK(silent.hung_up() && elsewhere.hung_up());
}

// Nodes that connect, exchange messages and disconnect at random moments, both ends or one, while connecting or later.
void test_connect_and_disconnect() {
  const unsigned seed = std::random_device{}();
  std::printf("  seed %u\n", seed);
  std::mt19937 random(seed);
  Node a, b;
  Memory from(a, 10, 1 << 16), to(b, 20, 1 << 16);
  const std::size_t before = descriptor_count();
  std::size_t fenced = 0;
  constexpr PeerNumber kRounds = 600;
  for (PeerNumber peer = 1; peer <= kRounds; ++peer) {
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
  std::printf("  %zu of %u fenced on both sides\n", fenced, kRounds);
}

}  // namespace

Tests connection_tests() {
  return {
      {"half connected", test_half_connected},
      {"half a message", test_half_message},
      {"half made, lost", [] { test_half_made({}, true); }},
      {"half made, goodbye", [] { test_half_made({}, false); }},
      {"half made, IPv6", [] { test_half_made({{"address", "::1"}}, true); }},
      {"connect and disconnect", test_connect_and_disconnect},
      {"settings of ofi_rxm", test_rxm_settings},
  };
}

}  // namespace fabric_test
