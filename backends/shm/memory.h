// Records of local and remote regions.
#pragma once

#include <cstdint>

#include "../core/handles.h"
#include "../core/types.h"

namespace aio::shm {

struct LocalRegion {
  std::uint64_t addr, nbytes;
  std::uint32_t slot;  // in our segment
};

struct RemoteRegion {
  PeerNumber peer = 0;
  std::uint32_t slot = 0, generation = 0;  // in the peer's segment
  std::uint64_t nbytes = 0;
  std::uint64_t addr = 0;  // in this process where it is mapped, else in the peer's
  Mapping mapping;         // empty: memory that the engine did not allocate, reached by process_vm_writev
};

}  // namespace aio::shm
