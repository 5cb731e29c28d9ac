// What is wrong with a piece, found before a device is asked to move it.
#pragma once

#include <cerrno>
#include <cstdint>

#include "types.h"

namespace aio {

namespace refusals {
inline const Outcome kUnknownRemote{Status::stale_region, 0, "the remote region is not registered"};
inline const Outcome kDeadRemote{Status::stale_region, 0, "the peer has deregistered the region"};
inline const Outcome kUnknownLocal{Status::provider, EINVAL, "the local region is not registered"};
inline const Outcome kTooLarge{Status::provider, EINVAL, "the piece exceeds what can be sent at once"};
inline const Outcome kBeyondRemote{Status::provider, EINVAL, "the piece exceeds the remote region"};
inline const Outcome kBeyondLocal{Status::provider, EINVAL, "the piece exceeds the local region"};
}  // namespace refusals

// Null: nothing is. An Outcome holds a string, so that none is made for a piece that is well. A piece without payload
// names no memory: over verbs it needs no key (IBTA C9-88). `Local` and `Remote` are how a domain remembers regions,
// null where it knows none.
template <class Local, class Remote>
const Outcome* refusal(const Run& run, const Piece& piece, const Local* local, const Remote* remote,
                       std::uint64_t most) noexcept {
  if (piece.nbytes == 0) return nullptr;
  if (remote == nullptr || remote->peer != run.peer) return &refusals::kUnknownRemote;
  if (remote->dead) return &refusals::kDeadRemote;
  if (local == nullptr || !local->registration) return &refusals::kUnknownLocal;
  if (piece.nbytes > most) return &refusals::kTooLarge;
  if (piece.remote_offset > remote->nbytes || piece.nbytes > remote->nbytes - piece.remote_offset) {
    return &refusals::kBeyondRemote;
  }
  const std::uint64_t offset = piece.local_addr - local->addr;
  if (piece.local_addr < local->addr || offset > local->nbytes || piece.nbytes > local->nbytes - offset) {
    return &refusals::kBeyondLocal;
  }
  return nullptr;
}

}  // namespace aio
