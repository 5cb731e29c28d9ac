"""Worker process of the benchmark: ``python -m aio_transfer.bench.workers.worker``, started by the coordinator.

It performs one step at a time, as requested on its standard input, and exits at the end of the input.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_type_hints

import anyio
import msgspec

from aio_transfer.bench.workers.messages import TO_WORKER, Did, Do, Start
from aio_transfer.bench.workers.worker_state import Place
from aio_transfer.errors import AioTransferError, ProtocolError
from aio_transfer.subprocesses.json_lines import Failed, Lines

if TYPE_CHECKING:
    from anyio.abc import ObjectReceiveStream

__all__ = ("main",)

STDIN, STDOUT, STDERR = range(3)
_T = TypeVar("_T")
COORDINATOR: Final = "the coordinator"
PACKAGE: Final = "aio_transfer.bench."


async def _serve(lines: Lines, start: Start) -> None:
    async with Place(start) as place, anyio.create_task_group() as group:
        send, receive = anyio.create_memory_object_stream[Do](1)
        group.start_soon(_perform_each, place, lines, receive)
        while (message := await lines.receive()) is not None:
            await send.send(_require(message, Do))
        # Nobody is left to hear what a step would say; it may wait for a peer that is as alone as we are.
        group.cancel_scope.cancel()


async def _perform_each(place: Place, lines: Lines, steps: ObjectReceiveStream[Do]) -> None:
    async for do in steps:
        lines.send(await _perform(place, do))


async def _perform(place: Place, do: Do) -> Did:
    module, _, name = do.step.partition(":")
    if not module.startswith(PACKAGE):
        raise ProtocolError(COORDINATOR, f"{do.step} is no step of ours")
    step: Callable[[Place, Any], Any] = getattr(importlib.import_module(module), name)
    ask = msgspec.json.decode(do.ask, type=get_type_hints(step)["ask"])
    return Did(msgspec.Raw(msgspec.json.encode(await step(place, ask))))


def _require(message: object, kind: type[_T]) -> _T:
    if not isinstance(message, kind):
        raise ProtocolError(COORDINATOR, f"said {type(message).__name__} instead of {kind.__name__}")
    return message


def main() -> int:
    """Serve the coordinator at the other end of our standard input and output; returns the exit status."""
    # Ctrl-C reaches the whole group; the coordinator decides what becomes of it, and then our input ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not get among our lines.
    channel = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    lines = Lines(STDIN, channel, COORDINATOR, TO_WORKER)
    try:
        start = anyio.run(lines.receive)
        if start is None:
            return 1
        _run(lines, _require(start, Start))
    except BrokenPipeError:
        return 1
    except BaseException as error:  # noqa: BLE001 - told in full to whoever started us
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if not isinstance(error, AioTransferError):
            traceback.print_exc()
        with contextlib.suppress(BrokenPipeError):
            lines.send(Failed(f"{type(error).__name__}: {error}"))
        return 1
    return 0


def _run(lines: Lines, start: Start) -> None:
    if start.loop == "trio":
        anyio.run(_serve, lines, start, backend="trio")
    else:
        anyio.run(_serve, lines, start, backend_options={"use_uvloop": start.loop == "uvloop"})


if __name__ == "__main__":
    raise SystemExit(main())
