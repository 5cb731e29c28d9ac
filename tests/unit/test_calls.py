"""How many functions of Python a write and a wait take: noise does not touch that, and a new one costs every caller."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from aio_transfer import RemoteRegion, TransferEngine

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import FrameType

ROUNDS = 32
"""Less than the awaits after which others have a turn (64), so at most one turn is among them."""
TURN = 24
"""What that takes of asyncio."""


async def calls_per_round(work: Callable[[], Awaitable[object]]) -> Counter[str]:
    """Count what is called by name."""
    calls: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            calls[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        for _ in range(ROUNDS):
            await work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(("operation", "most"), [("write", 24), ("wait", 7), ("notify", 17)])
def test_calls_of_python(operation: str, most: int) -> None:
    async def count() -> Counter[str]:
        async with TransferEngine(backend="shm") as a, TransferEngine(backend="shm") as b:
            region, target, counter = await a.register(bytearray(64)), await b.register(bytearray(64)), b.counter()
            remote = RemoteRegion.from_bytes(bytes(target.descriptor(counter)))
            reference = remote.counter
            assert reference is not None
            await a.write(region[0:8], remote[0:8])
            await a.notify(reference)
            await counter.wait(2)
            if operation == "write":
                return await calls_per_round(lambda: a.write(region[0:8], remote[0:8]))
            if operation == "notify":
                return await calls_per_round(lambda: a.notify(reference))
            for _ in range(ROUNDS):
                await a.notify(reference)
            return await calls_per_round(counter.wait)

    calls = asyncio.run(count())
    assert calls.total() <= ROUNDS * most + TURN, calls.most_common()
    assert operation in calls
