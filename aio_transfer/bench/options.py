"""What a run of the benchmark is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from aio_transfer.bench.sizes import sweep
from aio_transfer.errors import UsageError

__all__ = ("LOOPS", "Options")

LOOPS: Final = ("asyncio", "uvloop", "trio")
ONE_HOST: Final = ("shm", "sim")
PROGRESS: Final = ("adaptive", "spin")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to run, and on what.

    :param backend: a name that ``aio-transfer devices`` shows; never ``"auto"``, since a figure belongs to one path
    :param provider: of libfabric; empty for its default
    :param loop: the event loop of the measured processes
    :param progress: how their native threads wait
    :param foreign: use memory that is not from ``engine.allocate``
    :param repeat: alternating pairs of us and the floor
    :param sample_s: how long one sample lasts, about
    :param sizes: bytes per write, or per page, one after another; empty for the family's own
    :param count: chunks per batch; 0 for the family's own
    :param depth: batches under way at once; 0 for the family's own
    :param peers: engines at the other end, for families that have several; 0 for the family's own
    :param connect: ``HOST:PORT`` of a listener (``aio-transfer bench listen``) on the host of the other end; empty for
        this host
    """

    backend: str = "shm"
    provider: str = ""
    loop: str = "asyncio"
    progress: str = "adaptive"
    foreign: bool = False
    repeat: int = 5
    sample_s: float = 0.15
    sizes: tuple[int, ...] = ()
    count: int = 0
    depth: int = 0
    peers: int = 0
    connect: str = ""

    def __post_init__(self) -> None:
        """Refuse what cannot run.

        :raises UsageError: an unknown loop or way to wait, or ``"auto"``
        """
        if self.loop not in LOOPS or self.progress not in PROGRESS:
            raise UsageError(f"--loop is one of {', '.join(LOOPS)}; --progress is one of {', '.join(PROGRESS)}")
        if self.loop != "asyncio" and find_spec(self.loop) is None:
            raise UsageError(f"{self.loop} is not installed: pip install 'aio-transfer[{self.loop}]'")
        if self.connect and self.backend in ONE_HOST:
            raise UsageError(f"--connect measures between two hosts, and {self.backend} stays on one")
        if self.backend == "auto":
            raise UsageError("name a backend: a figure belongs to one path")

    def sizes_or(self, first: int, last: int) -> tuple[int, ...]:
        """Return the sizes to run: those asked for, else a sweep."""
        return self.sizes or sweep(first, last)

    def backend_options(self, host: str = "") -> dict[str, dict[str, str]]:
        """Return what the engine takes as ``options``.

        :param host: its own address, where not all are on one host
        """
        own = {"progress": self.progress}
        if self.provider:
            own["provider"] = self.provider
        if host and (self.backend == "tcp" or (self.backend == "libfabric" and self.provider in {"", "tcp"})):
            own["address"] = host
        return {self.backend: own}
