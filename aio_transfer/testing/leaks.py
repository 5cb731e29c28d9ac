"""Leak detection: files and native threads of this process that are open now and were not before."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Final

import anyio
import anyio.lowlevel

from aio_transfer.testing.timeouts import patient

__all__ = ("leaked_since", "open_resources")

_RELEASE_DEADLINE_S: Final = 2.0


def open_resources() -> Counter[str]:
    """Count open files by their target, and native threads by their name."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[f"fd of {_target_kind(str(entry.readlink()))}"] += 1
        except OSError:
            continue  # the descriptor of the listing itself
    for task in Path("/proc/self/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
        except OSError:
            continue  # the thread has just ended
        if name.startswith("aio-"):
            found[f"thread {name}"] += 1
    return found


async def leaked_since(before: Counter[str]) -> list[str]:
    """Describe every resource that is open now and was not before, once it has had time to be released."""
    with anyio.move_on_after(patient(_RELEASE_DEADLINE_S)):
        while open_resources() - before:
            gc.collect()  # arrays of our memory may hang in the reference cycles of a traceback
            await anyio.lowlevel.checkpoint()
        return []
    return [f"{count} x {name}" for name, count in (open_resources() - before).items()]


def _target_kind(target: str) -> str:
    """Drop the number of a socket or pipe: only how many there are matters."""
    return target.partition(":")[0] if target.startswith(("socket:", "pipe:")) else target
