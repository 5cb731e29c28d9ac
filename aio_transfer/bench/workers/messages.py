"""What the benchmark's processes say to each other, one line each."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aio_transfer.subprocesses.json_lines import Failed

__all__ = ("FROM_WORKER", "TO_WORKER", "WORKER", "Did", "Do", "Start")


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Be a worker: with this event loop, these engines.

    :param pipes: FIFOs to the other worker, inward and outward; none where that is on another host
    :param host: the address that engines and raw loops listen on; empty where all are on one host
    """

    backend: str
    loop: str
    backend_options: dict[str, dict[str, str]]
    engines: int
    pipes: list[str]
    host: str = ""


class Do(msgspec.Struct, frozen=True, tag="do"):
    """Perform a step.

    :param step: ``module:function`` within this package
    :param ask: its argument
    """

    step: str
    ask: msgspec.Raw


class Did(msgspec.Struct, frozen=True, tag="did"):
    """Performed it; this is what came of it."""

    say: msgspec.Raw


TO_WORKER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Start | Do)
WORKER: Final = "aio_transfer.bench.workers.worker"
"""The program that hears the one and says the other."""
FROM_WORKER: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Did | Failed)
