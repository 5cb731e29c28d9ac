"""Child program: the frame of a ``main`` that exchanges JSON lines with its parent over stdin and stdout."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from typing import TYPE_CHECKING, Any, Final

from aio_transfer.errors import AioTransferError
from aio_transfer.subprocesses.json_lines import Failed, JsonLines

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

__all__ = ("run_child_program",)

_STDIN, _STDOUT, _STDERR = range(3)
_EXIT_FAILED: Final = 1


def run_child_program(serve: Callable[[JsonLines], int], *, parent: str, decoder: msgspec.json.Decoder[Any]) -> int:
    """Run ``serve`` over stdin and stdout, and report an error to the parent as a :class:`Failed` message.

    :param serve: serves until its input ends; returns the exit status
    :param parent: name of the parent, for error messages
    :param decoder: of the messages that the parent may send
    :returns: the exit status
    """
    # Ctrl-C reaches the whole process group. The parent decides what to do, and ends our input when we shall exit.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Output of a library must not mix with the messages: they get an fd of their own, and stdout becomes stderr.
    channel = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    lines = JsonLines(_STDIN, channel, parent, decoder)
    try:
        return serve(lines)
    except BrokenPipeError:
        return _EXIT_FAILED
    except BaseException as error:  # noqa: BLE001 - reported to the parent in full
        _report(lines, error)
        return _EXIT_FAILED


def _report(lines: JsonLines, error: BaseException) -> None:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, AioTransferError):
        traceback.print_exc()  # with the groups around it
    with contextlib.suppress(BrokenPipeError):  # the parent may have exited
        lines.send(Failed(f"{type(error).__name__}: {error}"))
