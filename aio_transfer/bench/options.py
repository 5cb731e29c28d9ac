"""Options of a benchmark run."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from aio_transfer.bench.sizes import sweep
from aio_transfer.errors import UsageError

__all__ = ("LOOPS", "PROGRESS", "Options")

LOOPS: Final = ("asyncio", "uvloop", "trio")
PROGRESS: Final = ("adaptive", "spin")
ONE_HOST: Final = ("shm", "sim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of a benchmark run.

    :param backend: a name that ``aio-transfer devices`` shows; not ``"auto"``, since a result belongs to one path
    :param provider: of libfabric; empty for its default
    :param loop: event loop of the measured processes
    :param progress: how native threads wait
    :param foreign: use memory that is not from ``engine.allocate``
    :param repeat: number of alternating pairs of engine and baseline samples
    :param sample_s: approximate duration of one sample
    :param sizes: bytes per write, or per page, one test after another; empty for the family's own
    :param count: chunks per batch; 0 for the family's own
    :param depth: batches in flight at once; 0 for the family's own
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
        """Check the options that do not depend on this machine's devices.

        :raises UsageError: an unknown loop or progress mode, ``"auto"``, or one-host backends with ``connect``
        """
        for option, value, allowed in (("--loop", self.loop, LOOPS), ("--progress", self.progress, PROGRESS)):
            if value not in allowed:
                raise UsageError(f"{option} {value!r} is not one of {', '.join(allowed)}")
        if self.loop != "asyncio" and find_spec(self.loop) is None:
            raise UsageError(f"{self.loop} is not installed: pip install 'aio-transfer[{self.loop}]'")
        if self.connect and self.backend in ONE_HOST:
            raise UsageError(f"--connect measures between two hosts, but {self.backend} works on one host only")
        if self.backend == "auto":
            raise UsageError("--backend auto: name one backend, since a result belongs to one path")

    def sizes_or(self, first: int, last: int) -> tuple[int, ...]:
        """Return the sizes to run: those given, else a sweep."""
        return self.sizes or sweep(first, last)

    def backend_options(self, host: str = "") -> dict[str, dict[str, str]]:
        """Return the ``options`` of the engine.

        :param host: its own address, if the workers are on two hosts
        """
        options = {"progress": self.progress}
        if self.provider:
            options["provider"] = self.provider
        if host and (self.backend == "tcp" or (self.backend == "libfabric" and self.provider in {"", "tcp"})):
            options["address"] = host
        return {self.backend: options}
