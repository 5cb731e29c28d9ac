// Memory that processes share: an engine's own segment, and the mapping of memory that a peer offers.
#pragma once

#include <cstdint>

#include "../core/handles.h"
#include "wire.h"

namespace aio::shm {

// An engine's own segment: created, sealed against shrinking, and kept for as long as a core or domain uses it.
class OwnSegment {
 public:
  OwnSegment();

  [[nodiscard]] Segment* get() const noexcept { return static_cast<Segment*>(mapping_.base()); }
  [[nodiscard]] int memory_fd() const noexcept { return memory_.get(); }
  [[nodiscard]] int doorbell_fd() const noexcept { return doorbell_.get(); }
  [[nodiscard]] int process_fd() const noexcept { return process_.get(); }

 private:
  Fd memory_;
  Fd doorbell_;
  Fd process_;  // a pidfd of this process: a peer cannot forge one, and it outlives no reuse of the pid
  Mapping mapping_;
};

// Maps a memfd that a peer offers, after checking that it cannot shrink while it is mapped: that would be a SIGBUS.
Mapping map_sealed(int fd, std::uint64_t offset, std::uint64_t nbytes, bool writable, const char* what);

}  // namespace aio::shm
