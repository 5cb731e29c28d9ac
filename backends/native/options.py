"""Options of the worker thread, which every native backend has in common."""

from __future__ import annotations

from typing import Final

from aio_transfer.driver.options import Option

__all__ = ("CPUS", "PROGRESS", "SPIN_US", "WORKER_OPTIONS")

PROGRESS: Final = Option(
    "progress",
    str,
    "adaptive",
    "How the backend waits. `adaptive`: the worker thread sleeps while nothing is under way. `spin`: the worker thread "
    "polls all the time, where the transport gains by that, and a task that waits for a counter polls it for up to "
    "100 µs before the event loop sleeps. It lowers latency and takes one core.",
    choices=("adaptive", "spin"),
)
SPIN_US: Final = Option(
    "spin_us",
    int,
    0,
    "How long the worker thread goes on polling after its last work before it sleeps.",
    unit="µs",
    minimum=0,
    maximum=60_000_000,
)
CPUS: Final = Option(
    "cpus",
    list[int],
    (),
    "Cores where the worker thread may run. Not given: all cores of the process. Ignored where the process may use "
    "none of them.",
    minimum=0,
    maximum=1023,
)
WORKER_OPTIONS: Final = (PROGRESS, SPIN_US, CPUS)
"""For the table of a native backend: ``OptionTable(..., *WORKER_OPTIONS)``."""
