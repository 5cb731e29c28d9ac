// Which of a port's addresses (GIDs) to use towards a peer: by their type and what they can reach, never by their
// index, which differs between drivers and moves when an interface gets another address.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace aio::verbs {

enum class GidType : std::uint8_t { infiniband = 0, roce_v1 = 1, roce_v2 = 2 };

struct PortGid {
  GidType type;
  std::array<std::uint8_t, 16> raw;
  std::uint8_t index = 0;  // in its own port's table
};

// The best pair of one of ours and one of theirs, as positions in the lists; nothing if no pair can reach each other.
// Both ends come to the same pair, each from its own side.
std::optional<std::pair<std::size_t, std::size_t>> choose_gids(const std::vector<PortGid>& ours,
                                                               const std::vector<PortGid>& theirs);

std::string to_string(const PortGid& gid);
std::string to_string(const std::vector<PortGid>& gids);

}  // namespace aio::verbs
