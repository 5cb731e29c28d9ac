"""A helper process: started as a program, spoken to in lines, and gone when we are done with it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
import msgspec

from aio_transfer.errors import AioTransferError
from aio_transfer.subprocesses.json_lines import Failed, Lines

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Self

__all__ = ("Child", "ChildFailedError", "command", "environment", "require_kind")

GRACE_S: Final = 2.0
"""How long a child may take to say goodbye to its peers after its input has ended."""
STDERR_TAIL_NBYTES: Final = 4096

MessageT = TypeVar("MessageT", bound=msgspec.Struct)


class ChildFailedError(AioTransferError):
    """A helper process died, or gave up."""

    def __init__(self, name: str, reason: str, stderr: str = "") -> None:
        """Name the process, why, and the last it wrote to its standard error."""
        self.name = name
        self.reason = reason
        self.stderr = stderr
        super().__init__(f"{name} failed: {reason}" + (f"\n{stderr}" if stderr else ""))


class Child:
    """``python -m module`` in a process of its own, which does not outlive the ``async with`` block.

    Nor does it outlive us when we are killed: its input ends then, and that is its signal to leave.
    """

    def __init__(self, module: str, name: str, decoder: msgspec.json.Decoder[Any]) -> None:
        """Start it.

        :param name: for error messages
        :param decoder: of what it may say, :class:`~aio_transfer.subprocesses.json_lines.Failed` among it
        """
        self.name = name
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would block it
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                command(module),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment(),
                bufsize=0,
            )
        except BaseException:
            self._stderr.close()
            raise
        self._stdin, self._stdout = _require(self._process.stdin), _require(self._process.stdout)
        self._lines = Lines(self._stdout.fileno(), self._stdin.fileno(), name, decoder)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        :raises ChildFailedError: it is gone
        """
        try:
            self._lines.send(message)
        except BrokenPipeError as error:
            raise self._failure() from error

    async def receive(self, kind: type[MessageT]) -> MessageT:
        """Wait for one message, which must be a ``kind``.

        :raises ChildFailedError: it is gone, or says that it failed, or says something else
        """
        message = await self._lines.receive()
        if message is None:
            raise self._failure()
        return require_kind(message, kind, self.name, self._said)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End its input and wait a little; after an error, or if it stays, kill it."""
        self._stdin.close()
        if kind is None:
            with anyio.move_on_after(GRACE_S):
                while await self._lines.receive() is not None:
                    pass
        self.kill()

    def kill(self) -> None:
        """End it now, if it has not ended, and leave neither a zombie nor an fd. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()

    def _failure(self) -> ChildFailedError:
        """Explain why its output has ended; it is ending too, or has closed what it must not close."""
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return ChildFailedError(self.name, "closed its output", self._said())
        return ChildFailedError(self.name, f"exited with status {code}", self._said())

    def _said(self) -> str:
        """Return the end of its standard error."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), STDERR_TAIL_NBYTES, max(0, size - STDERR_TAIL_NBYTES)).decode(
            errors="replace"
        )


def require_kind(
    message: msgspec.Struct, kind: type[MessageT], name: str, said: Callable[[], str] = lambda: ""
) -> MessageT:
    """Return a message if it is a ``kind``.

    :param name: of who sent it
    :param said: the end of its standard error
    :raises ChildFailedError: it is another, or says that it failed
    """
    if isinstance(message, Failed):
        raise ChildFailedError(name, message.reason, said())
    if not isinstance(message, kind):
        raise ChildFailedError(name, f"said {type(message).__name__} instead of {kind.__name__}", said())
    return message


def command(module: str) -> list[str]:
    """Return what starts a module as a program."""
    return [sys.executable, "-P", "-m", module]  # -P: a checkout in the current directory is not what is installed


def environment() -> dict[str, str]:
    """Return ours, with this very package found first, wherever the child starts."""
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


def _require(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101 - it was asked for as a pipe
    return stream
