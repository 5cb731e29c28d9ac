// Regions: ours by number and by the key that a peer names, and those of peers.
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

// A peer's region, as runs name it.
struct RemoteRegion {
  PeerNumber peer = 0;
  std::uint64_t nbytes = 0;
  KeyBlob key{};
};

// A region of ours by the key that a peer names; nothing where it may not.
struct RegionLookup {
  RegionNumber number = 0;
  LocalRegion* region = nullptr;
  AccessResult result = AccessResult::stale;
};

}  // namespace aio::tcp
