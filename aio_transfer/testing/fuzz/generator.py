"""Schedule generator: draws the operations of a random schedule from a seed, by weighted profiles."""

from __future__ import annotations

import random
from dataclasses import fields
from typing import Final, TypeAlias

from aio_transfer.testing.fuzz.operations.definitions import (
    CancelledWrite,
    CancelTask,
    CloseEngine,
    CloseSourceRegion,
    CloseTargetRegion,
    ConnectPeer,
    CutPath,
    DisconnectPeer,
    DrainQueues,
    EnterBarrier,
    FailCompletions,
    FailPosts,
    FillQueues,
    HealPath,
    HoldCompletions,
    KillEngine,
    NotifyPeer,
    Operation,
    ReadSlice,
    ReceiveMessage,
    ReleaseCompletions,
    ReopenRegions,
    ReplaceCounter,
    ResumeNics,
    ScatterSlices,
    SendMessage,
    StallNics,
    WaitForCounts,
    WaitForUnpromised,
    WriteBurst,
    WritePages,
    WriteSlice,
    WriteToClosedRegion,
    YieldToLoop,
)

__all__ = ("FABRIC_OPERATIONS", "OPERATIONS", "generate_schedule")

_FIELD_BITS: Final = 6
_YIELD_PROBABILITY: Final = 0.35
"""How likely a :class:`YieldToLoop` follows an operation."""

_Weights: TypeAlias = "dict[type[Operation], float]"

_DATA: Final[_Weights] = {
    WriteSlice: 5,
    WritePages: 3,
    ScatterSlices: 1.5,
    NotifyPeer: 1.5,
    WriteBurst: 0.4,
    ReadSlice: 1.5,
    WaitForCounts: 3,
    WaitForUnpromised: 0.7,
    CancelTask: 2.5,
    CancelledWrite: 0.6,
    EnterBarrier: 1,
    SendMessage: 0.7,
    ReceiveMessage: 0.7,
    ReplaceCounter: 0.5,
}
_REGIONS: Final[_Weights] = {CloseTargetRegion: 2, CloseSourceRegion: 1, ReopenRegions: 2, WriteToClosedRegion: 1}
_PEERS: Final[_Weights] = {DisconnectPeer: 2.5, ConnectPeer: 0.8, CloseEngine: 0.8}
_FABRIC: Final[_Weights] = {
    CutPath: 1,
    HealPath: 0.7,
    StallNics: 1,
    ResumeNics: 0.7,
    FailPosts: 0.7,
    FailCompletions: 1.4,
    FillQueues: 1,
    DrainQueues: 0.7,
    HoldCompletions: 1,
    ReleaseCompletions: 0.7,
}
_KILLS: Final[_Weights] = {KillEngine: 1.5}
_LATE_DISCONNECTS: Final[_Weights] = {
    StallNics: 4,
    HoldCompletions: 1,
    DisconnectPeer: 4,
    ConnectPeer: 1,
    KillEngine: 0.5,
}
"""Disconnects while packets are held: what arrives afterwards must change nothing."""
_BARRIERS: Final[_Weights] = {EnterBarrier: 6, CancelTask: 3, WriteSlice: 1, StallNics: 0.5, ResumeNics: 0.5}
"""Barriers, some cancelled and entered again: a wrong count shows two epochs later, so many are needed."""
_FAILING_STRIPES: Final[_Weights] = {
    WriteSlice: 4,
    WritePages: 2,
    ScatterSlices: 1,
    FailCompletions: 4,
    StallNics: 2,
    ResumeNics: 1,
    WaitForCounts: 1,
}
"""Failed pieces while other pieces of the transfer are stalled: the error must wait for those."""
FABRIC_OPERATIONS: Final = frozenset({*_FABRIC, *_KILLS})
"""The operations that need a :class:`SimFabric`."""
OPERATIONS: Final = (*_DATA, YieldToLoop, *_REGIONS, *_PEERS, *_FABRIC, *_KILLS)
_PROFILES: Final[tuple[tuple[float, _Weights], ...]] = (
    (0.27, _DATA),
    (0.03, _BARRIERS),
    (0.25, _DATA | _REGIONS),
    (0.21, _DATA | _FABRIC),
    (0.02, _FAILING_STRIPES),
    (0.10, _DATA | _REGIONS | _FABRIC),
    # Opening an engine takes as long as several schedules, so profiles that close engines are rare.
    (0.06, _DATA | _REGIONS | _PEERS),
    (0.04, _DATA | _LATE_DISCONNECTS),
    (0.02, _DATA | _REGIONS | _FABRIC | _PEERS | _KILLS),
)
"""The probability of each profile. The fewer kinds of operations a schedule has, the more often they interact."""


def generate_schedule(seed: int, *, fabric: bool) -> list[Operation]:
    """Generate a schedule; the same seed gives the same schedule.

    :param fabric: include the operations that need a :class:`SimFabric`
    """
    rng = random.Random(seed)
    shares = [share for share, _ in _PROFILES]
    _, weights = rng.choices(_PROFILES, shares)[0]
    kinds = [kind for kind in weights if fabric or kind not in FABRIC_OPERATIONS]
    operations: list[Operation] = []
    for kind in rng.choices(kinds, [weights[kind] for kind in kinds], k=rng.randint(8, 16)):
        operations.append(kind(*(rng.getrandbits(_FIELD_BITS) for _ in fields(kind))))
        if rng.random() < _YIELD_PROBABILITY:
            operations.append(YieldToLoop(rng.getrandbits(3)))
    return operations
