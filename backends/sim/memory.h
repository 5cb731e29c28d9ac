// Records of local and remote regions.
#pragma once

#include <cstdint>

#include "wire.h"

namespace aio::sim {

struct LocalRegion {
  std::uint64_t addr, nbytes;
  unsigned access;
  Key key;
};

struct RemoteRegion {
  PeerNumber peer;
  Key key;
  std::uint64_t nbytes;
};

// Copies within this process as a NIC would: an address that is not there is an error, and no crash.
bool copy(const void* from, void* to, std::size_t nbytes) noexcept;

}  // namespace aio::sim
