// Test of verbs without a device: selection of GIDs, checks of endpoint blobs, numbers of requests.
#include <arpa/inet.h>

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>

#include "../../backends/core/cached_lookup_map.h"
#include "../../backends/verbs/gid.h"
#include "../../backends/verbs/queue.h"
#include "../../backends/verbs/wire.h"

using namespace aio::verbs;

namespace {

void claim(bool holds, const char* what, int line) {
  if (holds) return;
  std::fprintf(stderr, "line %d: not so: %s\n", line, what);
  std::exit(1);
}
#define CLAIM(condition) claim(condition, #condition, __LINE__)

PortGid gid(GidType type, const char* address, std::uint8_t index = 0) {
  PortGid made{type, {}, index};
  const std::string text = address;
  const std::string wide = text.find(':') == std::string::npos ? "::ffff:" + text : text;
  CLAIM(::inet_pton(AF_INET6, wide.c_str(), made.raw.data()) == 1);
  return made;
}

constexpr GidType v1 = GidType::roce_v1, v2 = GidType::roce_v2, ib = GidType::infiniband;

std::string chosen(const std::vector<PortGid>& ours, const std::vector<PortGid>& theirs) {
  const auto there = choose_gids(ours, theirs);
  const auto back = choose_gids(theirs, ours);
  CLAIM(there.has_value() == back.has_value());
  if (!there) return "none";
  // Both ends choose the same pair.
  CLAIM(ours[there->first].raw == ours[back->second].raw && theirs[there->second].raw == theirs[back->first].raw);
  return to_string(ours[there->first]) + " - " + to_string(theirs[there->second]);
}

void choice_of_addresses() {
  const auto link1 = gid(v2, "fe80::1"), link2 = gid(v2, "fe80::2");
  CLAIM(chosen({gid(v1, "10.0.0.1"), gid(v2, "10.0.0.1")}, {gid(v2, "10.0.0.2"), gid(v1, "10.0.0.2")}) ==
        "RoCE v2 10.0.0.1 - RoCE v2 10.0.0.2");
  CLAIM(chosen({link1, gid(v2, "10.0.0.1")}, {gid(v2, "10.0.0.2"), link2}) == "RoCE v2 10.0.0.1 - RoCE v2 10.0.0.2");
  CLAIM(chosen({link1, gid(v2, "10.0.0.1")}, {link2, gid(v2, "2001:db8::2")}) == "RoCE v2 fe80::1 - RoCE v2 fe80::2");
  CLAIM(chosen({gid(v2, "10.0.0.1")}, {gid(v2, "2001:db8::2")}) == "none");
  CLAIM(chosen({gid(v2, "10.0.0.1")}, {gid(v1, "10.0.0.2")}) == "none");
  CLAIM(chosen({gid(v2, "127.0.0.1")}, {gid(v2, "10.0.0.2")}) == "none");
  CLAIM(chosen({gid(v2, "::1"), gid(v2, "127.0.0.1"), link1}, {gid(v2, "::1"), gid(v2, "127.0.0.1"), link1}) ==
        "RoCE v2 127.0.0.1 - RoCE v2 127.0.0.1");
  CLAIM(chosen({}, {link1}) == "none");
  // Two networks on either port: the one that both have is chosen.
  CLAIM(chosen({gid(v2, "10.1.0.1"), gid(v2, "10.2.0.1")}, {gid(v2, "10.2.0.2"), gid(v2, "10.3.0.2")}) ==
        "RoCE v2 10.2.0.1 - RoCE v2 10.2.0.2");
  CLAIM(chosen({gid(ib, "fe80::1")}, {gid(ib, "fe80::2")}) == "fe80::1 - fe80::2");
}

void choices_at_random() {
  std::mt19937 random(7);
  const auto pick = [&](unsigned most) { return std::uniform_int_distribution<unsigned>(0, most)(random); };
  const auto list = [&] {
    std::vector<PortGid> gids;
    for (unsigned left = pick(5); left > 0; --left) {
      const std::string tail = std::to_string(1 + pick(250));
      const std::string address = pick(1) != 0 ? "10." + std::to_string(pick(3)) + ".0." + tail : "fe80::" + tail;
      gids.push_back(gid(pick(1) != 0 ? v1 : v2, address.c_str()));
    }
    return gids;
  };
  for (int round = 0; round < 20000; ++round) chosen(list(), list());
}

void endpoints() {
  EndpointBlob blob;
  blob.head = {kMagic, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 5, 16, 0, 0};
  blob.gids = {gid(v2, "10.0.0.1"), gid(v1, "fe80::1")};
  const std::string bytes = pack(blob);
  const EndpointBlob read = unpack_endpoint(bytes);
  CLAIM(read.gids.size() == 2 && read.gids[1].raw == blob.gids[1].raw && read.head.message_psn == 6);
  int refused = 0;
  const auto refuse = [&](const std::string& wrong) {
    try {
      unpack_endpoint(wrong);
    } catch (const aio::Failure& failure) {
      refused += failure.kind == aio::Failure::Kind::usage ? 1 : 0;
    }
  };
  for (std::size_t nbytes = 0; nbytes < bytes.size(); ++nbytes) refuse(bytes.substr(0, nbytes));
  refuse(bytes + "x");
  CLAIM(refused == static_cast<int>(bytes.size()) + 1);
  for (const std::size_t at : {0u, 4u, 6u, 43u, 46u}) {  // magic, rail, rails, mtu, number of GIDs
    std::string wrong = bytes;
    wrong[at] = static_cast<char>(at == 6 ? 0 : 99);
    refuse(wrong);
  }
  CLAIM(refused == static_cast<int>(bytes.size()) + 6);
}

void numbers_of_requests() {
  CLAIM(queue_of(make_wr_id(kImmediateReceive, 0)) == kImmediateReceive);
  CLAIM(queue_of(make_wr_id(kMaxQueues - 1, ~0ull)) == kMaxQueues - 1);
  // The distance to the tail gives the number from its 40 low bits, also across their wrap-around.
  for (const std::uint64_t tail : {std::uint64_t{0}, kNumberMask - 3, kNumberMask, 5 * (kNumberMask + 1) - 2}) {
    for (std::uint64_t number = tail; number < tail + 8; ++number) {
      const std::uint64_t id = make_wr_id(77, number);
      CLAIM(tail + ((id - tail) & kNumberMask) == number);
    }
  }
}

// The cached element is never found again once it was erased, whatever was inserted meanwhile.
void cached_lookups() {
  aio::CachedLookupMap<std::uint32_t, std::uint32_t> map;
  std::map<std::uint32_t, std::uint32_t> truth;
  std::mt19937 random(7);
  for (std::uint32_t step = 0; step < 200'000; ++step) {
    const std::uint32_t key = random() % 64;
    switch (random() % 8) {
      case 0:
        map.emplace(key, step);
        truth.emplace(key, step);
        break;
      case 1:
        map.assign(key, step);
        truth[key] = step;
        break;
      case 2:
        map.erase(key);
        truth.erase(key);
        break;
      default:
        const std::uint32_t* found = map.find(key);
        CLAIM((found != nullptr) == truth.contains(key));
        CLAIM(found == nullptr || *found == truth[key]);
    }
    CLAIM(map.size() == truth.size());
  }
  map.clear();
  for (std::uint32_t key = 0; key < 64; ++key) CLAIM(map.find(key) == nullptr);
}

}  // namespace

int main() {
  choice_of_addresses();
  cached_lookups();
  choices_at_random();
  endpoints();
  numbers_of_requests();
  std::puts("verbs without a device: as it should be");
}
