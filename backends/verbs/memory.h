// Records of local and remote regions.
#pragma once

#include <cstdint>
#include <set>

#include "connection.h"

namespace aio::verbs {

struct LocalRegion {
  std::uint64_t addr, nbytes, serial;
  unsigned access;
  bool cpu_accessible;  // not a device's memory
  Handle<abi::Mr> registration;
  std::set<PeerNumber> waits_for;  // while it is being deregistered: peers that have not acknowledged
  Clock::time_point deregistering_since;
};

struct RemoteRegion {
  PeerNumber peer;
  std::uint64_t nbytes;
  KeyBlob key;
  bool dead = false;
};

}  // namespace aio::verbs
