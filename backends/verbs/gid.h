// Selection of the GID pair that two ports use: by type and reach, never by index, which differs between drivers and
// changes when an interface gets another address.
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
  std::uint8_t index = 0;  // in its port's table
};

// The best pair of a local and a remote GID, as positions in the lists; nothing if no pair can communicate. Both ends
// choose the same pair.
std::optional<std::pair<std::size_t, std::size_t>> choose_gids(const std::vector<PortGid>& ours,
                                                               const std::vector<PortGid>& theirs);

std::string to_string(const PortGid& gid);
std::string to_string(const std::vector<PortGid>& gids);

}  // namespace aio::verbs
