"""Messages between the coordinator and its workers, one JSON object per line."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from aio_transfer.subprocesses.json_lines import Failed

__all__ = ("COORDINATOR_MESSAGES", "WORKER_MESSAGES", "WORKER_MODULE", "StartWorker", "StepRequest", "StepResponse")


class StartWorker(msgspec.Struct, frozen=True, tag="start"):
    """First message to a worker: its event loop and its engines.

    :param pipes: FIFOs to the other worker, inward and outward; empty if that is on another host
    :param host: address that engines and baselines listen on; empty if all workers are on one host
    """

    backend: str
    loop: str
    backend_options: dict[str, dict[str, str]]
    engines: int
    pipes: list[str]
    host: str = ""


class StepRequest(msgspec.Struct, frozen=True, tag="request"):
    """Call of one step in a worker.

    :param step: ``module:function`` within the benchmark package
    :param argument: the struct that the step takes
    """

    step: str
    argument: msgspec.Raw


class StepResponse(msgspec.Struct, frozen=True, tag="response"):
    """Return value of a step."""

    result: msgspec.Raw


WORKER_MODULE: Final = "aio_transfer.bench.workers.worker"
"""The program of a worker."""
COORDINATOR_MESSAGES: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(StartWorker | StepRequest)
"""Decoder of what a worker receives."""
WORKER_MESSAGES: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(StepResponse | Failed)
"""Decoder of what a coordinator receives."""
