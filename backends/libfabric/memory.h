// Records of local and remote regions.
#pragma once

#include <cstdint>
#include <map>
#include <utility>

#include "library.h"
#include "wire.h"

namespace aio::libfabric {

struct LocalRegion {
  std::uint64_t addr, nbytes, serial;
  unsigned access;
  Handle<abi::Mr> registration;
  bool queried = false;
  // After the registration is closed: by peer and token of its NIC, the query whose reply must have arrived.
  std::map<std::pair<PeerNumber, std::uint64_t>, std::uint64_t> waits_for;
};

struct RemoteRegion {
  PeerNumber peer;
  std::uint64_t nbytes;
  KeyBlob key;
  bool dead = false;
};

}  // namespace aio::libfabric
