// Records of local and remote regions.
#pragma once

#include <cstdint>

#include "../core/types.h"
#include "wire.h"

namespace aio::tcp {

struct LocalRegion {
  LocalMemory memory;
  std::uint32_t slot;
  std::uint64_t secret;
};

// A peer's region, as runs refer to it.
struct RemoteRegion {
  PeerNumber peer = 0;
  std::uint64_t nbytes = 0;
  KeyBlob key{};
};

// Result of looking up a local region by the key that a peer sent.
struct RegionLookup {
  RegionNumber number = 0;
  LocalRegion* region = nullptr;
  AccessResult result = AccessResult::stale;
};

}  // namespace aio::tcp
