// Piece records of a prepared scatter: the same peers again and again, so that only addresses and lengths are filled
// in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "types.h"

namespace aio {

// Spans of the targets, in bytes; `rooms` are the sizes of the peers' regions.
struct ScatterSpans {
  const std::uint64_t* begins;
  const std::uint64_t* remote_begins;
  const std::uint64_t* lengths;
  const std::uint64_t* rooms;
};

// Fills in one piece per target, from memory of `room` bytes at `address`. Returns their bytes in all; nothing where a
// span is longer than `largest` or outside of its regions: the caller then finds out which.
inline std::optional<std::uint64_t> fill_pieces(std::span<Piece> pieces, const ScatterSpans& spans,
                                                std::uint64_t address, std::uint64_t room, std::uint64_t largest) {
  std::uint64_t nbytes = 0;
  bool fine = true;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::uint64_t length = spans.lengths[i];
    // Written so that no sum can wrap; where the difference would, the first comparison has already failed.
    fine &= length <= std::min({largest, room, spans.rooms[i]});
    fine &= spans.begins[i] <= room - length;
    fine &= spans.remote_begins[i] <= spans.rooms[i] - length;
    pieces[i].local_addr = address + spans.begins[i];
    pieces[i].remote_offset = spans.remote_begins[i];
    pieces[i].nbytes = length;
    nbytes += length;
  }
  return fine ? std::optional(nbytes) : std::nullopt;
}

}  // namespace aio
