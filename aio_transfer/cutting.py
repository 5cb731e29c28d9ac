"""How a chunk is cut into pieces, weighed, and dealt to rails: what every plan is made with.

A *chunk* is what the caller named: one slice, one page, one target of a scatter. It raises its counter by exactly one
count, that is 256 units, however many pieces it travels in and by whichever rails: each piece carries the counter's id
in the low 24 bits of its immediate and its weight − 1 in the high 8, and the weights of a chunk add up to 256.

:source: design.md section 2, rule 3; drivers.py for the records
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from aio_transfer.drivers import (
    COUNTER_ID_BITS,
    MAX_COUNTER_ID,
    MAX_PIECES_PER_CHUNK,
    PIECE,
    RUN_STRUCT,
    UNITS_PER_COUNT,
    Op,
    PeerNumber,
    PieceFlag,
    RegionNumber,
)
from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = (
    "STRIPE_NBYTES",
    "WORD",
    "Plan",
    "Route",
    "bounds",
    "pieces_per_chunk",
    "records",
    "runs",
    "tags",
    "whole_immediate",
)

STRIPE_NBYTES: Final = 128 * 1024
"""Above this a chunk is spread over rails; NIXL's libfabric backend does so too (reading/peers.md)."""
MIN_SHARES_PER_STRIPE: Final = 4
"""A rail is given no less than a quarter of that: a post costs 0.45 µs, as long as 22 KiB take at 400 Gb/s."""
GRAIN_NBYTES: Final = 4096
"""Where a chunk is cut: NICs and memory both like whole pages."""
MAX_PIECES: Final = 2**32 - 1
WORD: Final = np.dtype("<u8")
"""A PIECE record is four of them; the last is ``immediate`` in its low and ``flags`` in its high half."""

_WHOLE: Final = (UNITS_PER_COUNT - 1) << COUNTER_ID_BITS
_IMMEDIATE: Final = int(PieceFlag.IMMEDIATE)


class Plan(NamedTuple):
    """One batch for :meth:`~aio_transfer.drivers.Driver.post`.

    :param runs: RUN records
    :param pieces: PIECE records
    :param chunks: how many chunks the caller named; with a counter, the counts that are promised
    :param nbytes: payload
    """

    runs: bytes | NDArray[np.void]
    pieces: bytes | NDArray[np.void]
    chunks: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How one remote region is reached: resolved once by the engine, used by every plan.

    :param peer: the connection's number
    :param remote_region: the number its driver knows the region by
    :param rails: how many NICs the connection has
    :param max_piece_nbytes: the driver's limit for one piece
    :param stripe_nbytes: a chunk above this is spread over rails, when there are fewer chunks than rails
    """

    peer: PeerNumber
    remote_region: RegionNumber
    rails: int
    max_piece_nbytes: int
    stripe_nbytes: int = STRIPE_NBYTES
    whole_nbytes: int = field(init=False)
    """A single chunk up to this travels in one piece."""
    piece_nbytes: int = field(init=False)
    """Pieces of a chunk that is cut are at most this large."""
    grain_nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Derive what every plan asks for."""
        if self.rails < 1 or self.max_piece_nbytes < 1 or self.stripe_nbytes < 1:
            sizes = f"{self.rails} rails, pieces of {self.max_piece_nbytes} B, stripes of {self.stripe_nbytes} B"
            message = f"a route needs at least 1 of each, not {sizes}"
            raise UsageError(message)
        largest = self.max_piece_nbytes
        # A small odd limit (tests have one) is used to the byte; of a large one 4 KiB are not missed.
        grain = GRAIN_NBYTES if largest >= 256 * GRAIN_NBYTES or largest % GRAIN_NBYTES == 0 else 1
        object.__setattr__(self, "grain_nbytes", grain)
        object.__setattr__(self, "piece_nbytes", largest - largest % grain)
        object.__setattr__(self, "whole_nbytes", largest if self.rails == 1 else min(largest, self.stripe_nbytes))


def pieces_per_chunk(nbytes: int, chunks: int, route: Route, *, counted: bool) -> int:
    """Return how many pieces each chunk travels in: few, and the same load for every rail used."""
    if nbytes <= route.whole_nbytes or (nbytes <= route.max_piece_nbytes and chunks >= route.rails):
        return 1
    count = needed = 1 if nbytes <= route.max_piece_nbytes else -(-nbytes // route.piece_nbytes)
    if chunks < route.rails and nbytes > route.stripe_nbytes:
        share = max(1, route.stripe_nbytes // MIN_SHARES_PER_STRIPE)
        wanted = min(route.rails, nbytes * chunks // share)
        count = max(needed, -(-wanted // chunks))
        used = min(route.rails, count * chunks)
        step = used // math.gcd(used, chunks)
        count = -(-count // step) * step
    count = min(count, max(needed, -(-nbytes // route.grain_nbytes)))  # no piece is empty
    if counted and count > MAX_PIECES_PER_CHUNK:
        if needed > MAX_PIECES_PER_CHUNK:
            limit = MAX_PIECES_PER_CHUNK * route.piece_nbytes
            message = f"a counted chunk of {nbytes} B: this path carries at most {limit} B as one; write it in parts"
            raise UsageError(message)
        count = MAX_PIECES_PER_CHUNK
    return count


def bounds(nbytes: int, count: int, grain: int) -> NDArray[np.uint64]:
    """Return the ``count + 1`` places where a chunk is cut: nearly equal parts, at multiples of ``grain``."""
    base, extra = divmod(-(-nbytes // grain), count)
    index = np.arange(count + 1, dtype=np.uint64)
    # base * index + min(index, extra): no product exceeds the number of grains, so nothing wraps.
    places = (index * np.uint64(base) + np.minimum(index, np.uint64(extra))) * np.uint64(grain)
    places[-1] = nbytes
    return places


def tags(count: int, counter: int | None) -> NDArray[np.uint64]:
    """Return a chunk's ``immediate`` (low 32 bits) and ``flags`` fields, as one little-endian word per piece."""
    if counter is None:
        return np.zeros(count, np.uint64)
    if count == 1:
        return np.array((whole_immediate(counter) | _IMMEDIATE << 32,), np.uint64)
    base, extra = divmod(UNITS_PER_COUNT, count)
    weights = np.full(count, base, np.uint64)
    weights[:extra] += np.uint64(1)
    weights -= np.uint64(1)
    return weights << np.uint64(COUNTER_ID_BITS) | np.uint64(_checked(counter) | _IMMEDIATE << 32)


def records(words: NDArray[np.uint64]) -> NDArray[np.void]:
    """See rows of four words as PIECE records."""
    return words.reshape(-1).view(PIECE)


def runs(op: Op | int, route: Route, local_region: int, total: int, cursor: int) -> bytes:
    """Cut ``total`` pieces into contiguous, nearly equal ranges over the rails."""
    if total > MAX_PIECES:
        message = f"{total} pieces in one batch: {MAX_PIECES} are possible"
        raise UsageError(message)
    base, extra = divmod(total, route.rails)
    packed = []
    first = 0
    for index in range(min(route.rails, total)):
        count = base + (index < extra)
        rail = (cursor + index) % route.rails
        packed.append(RUN_STRUCT.pack(route.peer, rail, op, local_region, route.remote_region, first, count))
        first += count
    return b"".join(packed)


def whole_immediate(counter: int) -> int:
    """Return the immediate of a chunk in one piece.

    :raises UsageError: the id has more than 24 bits
    """
    return _WHOLE | _checked(counter)


def _checked(counter: int) -> int:
    if not 0 <= counter <= MAX_COUNTER_ID:
        message = f"counter id {counter} is not within {COUNTER_ID_BITS} bits"
        raise UsageError(message)
    return counter
