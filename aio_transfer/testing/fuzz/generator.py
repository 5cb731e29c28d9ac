"""Random schedules from a seed: which moves there are, how likely each is, and in which company."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Final, TypeAlias

from aio_transfer.testing.fuzz.operations.definitions import (
    Cancel,
    CancelledWrite,
    CloseEngine,
    CloseSource,
    CloseTarget,
    Connect,
    Cut,
    Disconnect,
    DrainQueues,
    Enter,
    FailCompletions,
    FailPosts,
    FillQueues,
    Flood,
    Heal,
    Hold,
    Kill,
    Move,
    Notify,
    Overwait,
    Read,
    Receive,
    Recount,
    Release,
    Reopen,
    Resume,
    Scatter,
    Send,
    Stale,
    Stall,
    Turns,
    Wait,
    Write,
    WritePages,
)

__all__ = ("FABRIC_MOVES", "MOVES", "draw")

_FIELD_BITS: Final = 6
_PAUSE: Final = 0.35
"""How likely the loop turns a few times between two moves."""

_Weights: TypeAlias = "dict[type[Move], float]"

_DATA: Final[_Weights] = {
    Write: 5,
    WritePages: 3,
    Scatter: 1.5,
    Notify: 1.5,
    Flood: 0.4,
    Read: 1.5,
    Wait: 3,
    Overwait: 0.7,
    Cancel: 2.5,
    CancelledWrite: 0.6,
    Enter: 1,
    Send: 0.7,
    Receive: 0.7,
    Recount: 0.5,
}
_REGIONS: Final[_Weights] = {CloseTarget: 2, CloseSource: 1, Reopen: 2, Stale: 1}
_PEERS: Final[_Weights] = {Disconnect: 2.5, Connect: 0.8, CloseEngine: 0.8}
_FABRIC: Final[_Weights] = {
    Cut: 1,
    Heal: 0.7,
    Stall: 1,
    Resume: 0.7,
    FailPosts: 0.7,
    FailCompletions: 1.4,
    FillQueues: 1,
    DrainQueues: 0.7,
    Hold: 1,
    Release: 0.7,
}
_DEATH: Final[_Weights] = {Kill: 1.5}
_PARTING: Final[_Weights] = {Stall: 4, Hold: 1, Disconnect: 4, Connect: 1, Kill: 0.5}
"""Goodbyes while packets wait: what comes too late must find nobody."""
_MEETING: Final[_Weights] = {Enter: 6, Cancel: 3, Write: 1, Stall: 0.5, Resume: 0.5}
"""Barriers, some left and entered again: a wrong count shows two epochs later, so there have to be many."""
_TEARING: Final[_Weights] = {Write: 4, WritePages: 2, Scatter: 1, FailCompletions: 4, Stall: 2, Resume: 1, Wait: 1}
"""Failures while siblings are held up: an error must wait for them."""
FABRIC_MOVES: Final = frozenset({*_FABRIC, *_DEATH})
"""Those that need a :class:`SimFabric`; elsewhere they do nothing."""
MOVES: Final = (*_DATA, Turns, *_REGIONS, *_PEERS, *_FABRIC, *_DEATH)
_PROFILES: Final[tuple[tuple[float, _Weights], ...]] = (
    (0.27, _DATA),
    (0.03, _MEETING),
    (0.25, _DATA | _REGIONS),
    (0.21, _DATA | _FABRIC),
    (0.02, _TEARING),
    (0.10, _DATA | _REGIONS | _FABRIC),
    # Another engine costs as much as several schedules: these are rare, and then meet everything else.
    (0.06, _DATA | _REGIONS | _PEERS),
    (0.04, _DATA | _PARTING),
    (0.02, _DATA | _REGIONS | _FABRIC | _PEERS | _DEATH),
)
"""How likely a schedule is of which kind. Fewer kinds of moves in one schedule meet each other more often."""


def draw(seed: int, *, fabric: bool) -> list[Move]:
    """Make a schedule: the same for the same seed.

    :param fabric: the moves of a :class:`SimFabric` are possible
    """
    rng = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
    shares = [share for share, _ in _PROFILES]
    _, weights = rng.choices(_PROFILES, shares)[0]
    kinds = [kind for kind in weights if fabric or kind not in FABRIC_MOVES]
    moves: list[Move] = []
    for kind in rng.choices(kinds, [weights[kind] for kind in kinds], k=rng.randint(8, 16)):
        moves.append(kind(*(rng.getrandbits(_FIELD_BITS) for _ in fields(kind))))
        if rng.random() < _PAUSE:
            moves.append(Turns(rng.getrandbits(3)))
    return moves
