#include "gid.h"

#include <arpa/inet.h>

#include <algorithm>
#include <bit>
#include <tuple>

namespace aio::verbs {

namespace {

// In order of preference, lowest first. Linux has no route to ::1 for a device (rdma_rxe on lo), but one to 127.0.0.1.
enum class Reach : std::uint8_t { loopback6, link, loopback4, global4, global6 };

bool starts_with(const PortGid& gid, std::initializer_list<std::uint8_t> bytes) {
  return std::equal(bytes.begin(), bytes.end(), gid.raw.begin());
}

bool is_ipv4(const PortGid& gid) { return starts_with(gid, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff}); }

Reach reach_of(const PortGid& gid) {
  if (is_ipv4(gid)) return gid.raw[12] == 127 ? Reach::loopback4 : Reach::global4;
  if (starts_with(gid, {0xfe, 0x80})) return Reach::link;
  return starts_with(gid, {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}) ? Reach::loopback6 : Reach::global6;
}

// Length of the common prefix: subnets are not known here, but neighbours share a prefix.
int common_bits(const PortGid& one, const PortGid& other) {
  for (std::size_t i = 0; i < one.raw.size(); ++i) {
    const auto differing = static_cast<std::uint8_t>(one.raw[i] ^ other.raw[i]);
    if (differing != 0) return static_cast<int>(8 * i) + std::countl_zero(differing);
  }
  return 128;
}

}  // namespace

std::optional<std::pair<std::size_t, std::size_t>> choose_gids(const std::vector<PortGid>& ours,
                                                               const std::vector<PortGid>& theirs) {
  // RoCE v2 is routed UDP; v1 stays within an Ethernet segment. So does a link-local address, whatever its type.
  using Rank = std::tuple<int, int, int, std::array<std::uint8_t, 16>, std::array<std::uint8_t, 16>>;
  std::optional<std::pair<std::size_t, std::size_t>> best;
  Rank best_rank;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    for (std::size_t j = 0; j < theirs.size(); ++j) {
      const Reach reach = reach_of(ours[i]);
      if (ours[i].type != theirs[j].type || reach != reach_of(theirs[j])) continue;
      // The addresses themselves break ties, the smaller one first, so that both ends choose alike.
      const auto [low, high] = std::minmax(ours[i].raw, theirs[j].raw);
      const Rank rank{static_cast<int>(ours[i].type), static_cast<int>(reach), common_bits(ours[i], theirs[j]), low,
                      high};
      if (best && rank <= best_rank) continue;
      best = {i, j};
      best_rank = rank;
    }
  }
  return best;
}

std::string to_string(const PortGid& gid) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (is_ipv4(gid)) {
    ::inet_ntop(AF_INET, &gid.raw[12], text.data(), text.size());
  } else {
    ::inet_ntop(AF_INET6, gid.raw.data(), text.data(), text.size());
  }
  const char* type = gid.type == GidType::roce_v2 ? "RoCE v2 " : gid.type == GidType::roce_v1 ? "RoCE v1 " : "";
  return type + std::string(text.data());
}

std::string to_string(const std::vector<PortGid>& gids) {
  std::string all;
  for (const PortGid& gid : gids) all += (all.empty() ? "" : ", ") + to_string(gid);
  return all.empty() ? "none" : all;
}

}  // namespace aio::verbs
