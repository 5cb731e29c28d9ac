"""Worker process of the benchmark: ``python -m aio_transfer.bench.workers.worker``, started by the coordinator.

It runs one step at a time, as requested on its standard input, and exits at the end of the input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_type_hints

import anyio
import msgspec

from aio_transfer.bench.workers.messages import COORDINATOR_MESSAGES, StartWorker, StepRequest, StepResponse
from aio_transfer.bench.workers.worker_state import WorkerState
from aio_transfer.errors import ProtocolError
from aio_transfer.subprocesses.child_program import run_child_program

if TYPE_CHECKING:
    from anyio.abc import ObjectReceiveStream

    from aio_transfer.subprocesses.json_lines import JsonLines

__all__ = ("main",)

_T = TypeVar("_T")
COORDINATOR: Final = "the coordinator"
PACKAGE: Final = "aio_transfer.bench."


async def _serve(lines: JsonLines, start: StartWorker) -> None:
    async with WorkerState(start) as state, anyio.create_task_group() as group:
        send, receive = anyio.create_memory_object_stream[StepRequest](1)
        group.start_soon(_run_steps, state, lines, receive)
        while (message := await lines.receive()) is not None:
            await send.send(_require(message, StepRequest))
        # The coordinator has exited: a running step may wait for ever for a peer that exits as well.
        group.cancel_scope.cancel()


async def _run_steps(state: WorkerState, lines: JsonLines, requests: ObjectReceiveStream[StepRequest]) -> None:
    async for request in requests:
        lines.send(await _run_step(state, request))


async def _run_step(state: WorkerState, request: StepRequest) -> StepResponse:
    module, _, name = request.step.partition(":")
    if not module.startswith(PACKAGE):
        raise ProtocolError(COORDINATOR, f"{request.step} is not a step of this package")
    step: Callable[[WorkerState, Any], Any] = getattr(importlib.import_module(module), name)
    _, argument_type, *_ = get_type_hints(step).values()
    argument = msgspec.json.decode(request.argument, type=argument_type)
    return StepResponse(msgspec.Raw(msgspec.json.encode(await step(state, argument))))


def _require(message: object, kind: type[_T]) -> _T:
    if not isinstance(message, kind):
        raise ProtocolError(COORDINATOR, f"sent {type(message).__name__} instead of {kind.__name__}")
    return message


def _run(lines: JsonLines) -> int:
    message = anyio.run(lines.receive)
    if message is None:
        return 1
    start = _require(message, StartWorker)
    if start.loop == "trio":
        anyio.run(_serve, lines, start, backend="trio")
    else:
        anyio.run(_serve, lines, start, backend_options={"use_uvloop": start.loop == "uvloop"})
    return 0


def main() -> int:
    """Serve the coordinator over stdin and stdout; returns the exit status."""
    return run_child_program(_run, parent=COORDINATOR, decoder=COORDINATOR_MESSAGES)


if __name__ == "__main__":
    raise SystemExit(main())
