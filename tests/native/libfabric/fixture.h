// Fixtures of the tests of the libfabric domain: nodes and pairs of the provider under test, and what it promises.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "../../../backends/libfabric/domain.h"
#include "../harness.h"

namespace fabric_test {

using namespace aio;
using harness::Batch, harness::Clock, harness::drive, harness::drive_for, harness::Memory, harness::run;

using Settings = std::map<std::string, std::string>;
using Tests = std::vector<std::pair<const char*, std::function<void()>>>;

// From the command line and the environment.
inline std::string provider = "tcp";
inline std::string search_path;
inline Settings extra;

struct Node : harness::Node {
  explicit Node(Settings options = {}) {
    options.insert({{"provider", provider}, {"search", search_path}, {"unproven", "1"}});
    options.insert(extra.begin(), extra.end());
    domain = std::move(libfabric::open_domains(sink, options).front());
  }
};

// The device checks every packet against its key: closing a registration suffices, and no peer is queried.
inline bool device_checks_keys() { return provider == "efa"; }

// Otherwise a later write may arrive first.
inline bool keeps_order() { return provider != "efa"; }

// The fabric `efa` closes an endpoint only after all its operations have stopped.
inline bool closes_at_once() { return !extra.contains("fabric") || extra["fabric"] != "efa"; }

inline void fill(std::vector<std::uint8_t>& bytes, unsigned seed) {
  std::mt19937_64 random(seed);
  for (std::size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const std::uint64_t value = random();
    std::memcpy(&bytes[i], &value, 8);
  }
}

inline constexpr PeerNumber kB = 1, kA = 1;

inline void connect_nodes(harness::Node& a, harness::Node& b, PeerNumber b_at_a = kB, PeerNumber a_at_b = kA) {
  harness::join(a, b, b_at_a, a_at_b);
}

struct Pair {
  Node a, b;
  explicit Pair(const Settings& options = {}) : a(options), b(options) { connect_nodes(a, b); }
  std::vector<harness::Node*> both() { return {&a, &b}; }
};

Tests data_tests();
Tests storm_tests();
Tests fence_tests();
Tests connection_tests();
// `self`: this program, which is started again as the second process.
Tests process_tests(const char* self);
// The second process. Its commands come over the socket `fd`.
int run_writer(int fd);

}  // namespace fabric_test
