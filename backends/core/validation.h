// Validation of a piece before a device is asked to move it.
#pragma once

#include <cerrno>
#include <cstdint>

#include "types.h"

namespace aio {

namespace invalid {
inline const Outcome kUnknownRemote{Status::stale_region, 0, "the remote region is not registered"};
inline const Outcome kDeadRemote{Status::stale_region, 0, "the peer has deregistered the region"};
inline const Outcome kUnknownLocal{Status::provider, EINVAL, "the local region is not registered"};
inline const Outcome kTooLarge{Status::provider, EINVAL, "the piece exceeds what can be sent at once"};
inline const Outcome kBeyondRemote{Status::provider, EINVAL, "the piece exceeds the remote region"};
inline const Outcome kBeyondLocal{Status::provider, EINVAL, "the piece exceeds the local region"};
}  // namespace invalid

// Returns what is wrong with `piece`, or null if it is valid. An Outcome holds a string, so none is made for a valid
// piece. A piece without payload names no memory: over verbs it needs no key (IBTA C9-88). `Local` and `Remote` are a
// domain's records of registered regions, null where it has none.
template <class Local, class Remote>
const Outcome* validate(const Run& run, const Piece& piece, const Local* local, const Remote* remote,
                        std::uint64_t max_nbytes) noexcept {
  if (piece.nbytes == 0) return nullptr;
  if (remote == nullptr || remote->peer != run.peer) return &invalid::kUnknownRemote;
  if (remote->dead) return &invalid::kDeadRemote;
  if (local == nullptr || !local->registration) return &invalid::kUnknownLocal;
  if (piece.nbytes > max_nbytes) return &invalid::kTooLarge;
  if (piece.remote_offset > remote->nbytes || piece.nbytes > remote->nbytes - piece.remote_offset) {
    return &invalid::kBeyondRemote;
  }
  const std::uint64_t offset = piece.local_addr - local->addr;
  if (piece.local_addr < local->addr || offset > local->nbytes || piece.nbytes > local->nbytes - offset) {
    return &invalid::kBeyondLocal;
  }
  return nullptr;
}

}  // namespace aio
