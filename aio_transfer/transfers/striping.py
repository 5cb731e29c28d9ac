"""Striping: splits a chunk into pieces, assigns them to rails (NICs), and adds the completion count.

A *chunk* is what the caller named: one slice, one page, one target of a scatter. It raises its counter by exactly one
count, whatever the number of pieces and rails. A chunk in one piece carries its count. A chunk in several pieces is
counted by an empty piece that starts once all of them have been delivered: the immediates of the pieces have no room
for the information which of them belong together.

:source: docs/explanation/contract.md, rules 2 and 3; docs/decisions.md; aio_transfer/driver/records.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from msgspec import Struct

from aio_transfer.driver.records import (
    ANY_REGION,
    COUNTER_ID_BITS,
    MAX_COUNTER_ID,
    MAX_COUNTS_PER_IMMEDIATE,
    PIECE,
    RUN_STRUCT,
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
    "Batch",
    "Route",
    "bounds",
    "counts",
    "immediate",
    "pieces_per_chunk",
    "records",
    "runs",
    "tag",
)

STRIPE_NBYTES: Final = 128 * 1024
"""A larger chunk is spread over rails; NIXL's libfabric backend uses the same threshold."""
MIN_SHARES_PER_STRIPE: Final = 4
"""A rail gets at least a quarter of that: a post costs 0.45 µs, the time of 22 KiB at 400 Gb/s."""
GRAIN_NBYTES: Final = 4096
"""Chunks are cut at multiples of this: NICs and memory are fastest on whole pages."""
MAX_PIECES: Final = 2**32 - 1
WORD: Final = np.dtype("<u8")
"""A PIECE record is four of them; the last is ``immediate`` in its low and ``flags`` in its high half."""

_IMMEDIATE: Final = int(PieceFlag.IMMEDIATE)
_DELIVERED: Final = int(PieceFlag.DELIVERED)


class Batch(Struct, gc=False):
    """One batch for :meth:`~aio_transfer.driver.protocol.Driver.post`.

    :param runs: RUN records
    :param pieces: PIECE records
    :param chunks: chunks that the caller named; with a counter, the counts that are announced
    :param nbytes: payload
    """

    runs: bytes | NDArray[np.void]
    pieces: bytes | NDArray[np.void]
    chunks: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Route to one remote region: resolved once, used by every plan.

    :param peer: the connection's number
    :param remote_region: the region's number in the driver
    :param rails: number of NICs of the connection
    :param max_piece_nbytes: the driver's limit for one piece
    :param stripe_nbytes: a chunk above this is spread over rails, when there are fewer chunks than rails
    """

    peer: PeerNumber
    remote_region: RegionNumber
    rails: int
    max_piece_nbytes: int
    stripe_nbytes: int = STRIPE_NBYTES
    whole_nbytes: int = field(init=False)
    """Largest single chunk that travels in one piece."""
    piece_nbytes: int = field(init=False)
    """Largest piece of a chunk that is cut."""
    grain_nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        """Derive the sizes that every plan reads."""
        if self.rails < 1 or self.max_piece_nbytes < 1 or self.stripe_nbytes < 1:
            sizes = f"{self.rails} rails, pieces of {self.max_piece_nbytes} B, stripes of {self.stripe_nbytes} B"
            message = f"a route needs at least 1 of each, not {sizes}"
            raise UsageError(message)
        largest = self.max_piece_nbytes
        # A small odd limit (as in tests) is used to the byte; rounding a large one down loses less than 4 KiB.
        grain = GRAIN_NBYTES if largest >= 256 * GRAIN_NBYTES or largest % GRAIN_NBYTES == 0 else 1
        object.__setattr__(self, "grain_nbytes", grain)
        object.__setattr__(self, "piece_nbytes", largest - largest % grain)
        object.__setattr__(self, "whole_nbytes", largest if self.rails == 1 else min(largest, self.stripe_nbytes))


def pieces_per_chunk(nbytes: int, chunks: int, route: Route) -> int:
    """Return the number of pieces per chunk: few, with the same load for every rail used."""
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
    return min(count, max(needed, -(-nbytes // route.grain_nbytes)))  # no piece is empty


def bounds(nbytes: int, count: int, grain: int) -> NDArray[np.uint64]:
    """Return the ``count + 1`` offsets where a chunk is cut: nearly equal parts, at multiples of ``grain``."""
    base, extra = divmod(-(-nbytes // grain), count)
    index = np.arange(count + 1, dtype=np.uint64)
    # base * index + min(index, extra): no product exceeds the number of grains, so nothing wraps.
    places = (index * np.uint64(base) + np.minimum(index, np.uint64(extra))) * np.uint64(grain)
    places[-1] = nbytes
    return places


def tag(pieces: int, counter: int | None) -> int:
    """Return the ``immediate`` (low 32 bits) and ``flags`` of each of a chunk's pieces, as one little-endian word."""
    if counter is None:
        return 0
    return immediate(counter) | _IMMEDIATE << 32 if pieces == 1 else _DELIVERED << 32


def records(words: NDArray[np.uint64]) -> NDArray[np.void]:
    """View rows of four words as PIECE records."""
    return words.reshape(-1).view(PIECE)


def runs(op: Op | int, route: Route, local_region: int, total: int, cursor: int) -> list[bytes]:
    """Divide ``total`` pieces into contiguous, nearly equal ranges, one per rail; return their RUN records."""
    if total > MAX_PIECES:
        message = f"{total} pieces in one batch: {MAX_PIECES} are possible"
        raise UsageError(message)
    base, extra = divmod(total, route.rails)
    packed = []
    first = 0
    for index in range(min(route.rails, total)):
        count = base + (index < extra)
        rail = (cursor + index) % route.rails
        packed.append(RUN_STRUCT.pack(route.peer, rail, op, local_region, route.remote_region, first, count, 0))
        first += count
    return packed


def counts(
    route: Route, counter: int, chunks: int, *, first: int, after: int, cursor: int
) -> tuple[bytes, NDArray[np.uint64]]:
    """Add the counts of ``chunks`` that were cut, sent once the ``after`` runs before have stopped.

    :param first: the index of its first piece
    :returns: a RUN record, and its pieces as rows of four words
    """
    full, rest = divmod(chunks, MAX_COUNTS_PER_IMMEDIATE)
    words = np.zeros((full + (rest > 0), 4), WORD)
    words[:, 3] = immediate(counter, MAX_COUNTS_PER_IMMEDIATE) | _IMMEDIATE << 32
    if rest:
        words[-1, 3] = immediate(counter, rest) | _IMMEDIATE << 32
    rail = cursor % route.rails
    run = RUN_STRUCT.pack(route.peer, rail, Op.WRITE, ANY_REGION, route.remote_region, first, len(words), after)
    return run, words


def immediate(counter: int, counts: int = 1) -> int:
    """Return the immediate that raises a counter by 1 … 256.

    :raises UsageError: the id has more than 24 bits
    """
    if not 0 <= counter <= MAX_COUNTER_ID:
        message = f"counter id {counter} is not within {COUNTER_ID_BITS} bits"
        raise UsageError(message)
    return (counts - 1) << COUNTER_ID_BITS | counter
