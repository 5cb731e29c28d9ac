"""Child process, seen from its parent: started from a module, controlled by JSON lines, killed at the end."""

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
from aio_transfer.subprocesses.json_lines import Failed, JsonLines

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Self

__all__ = ("Child", "ChildFailedError", "require_message", "start_module")

GRACE_S: Final = 2.0
"""Time for a child to close its connections and exit after its input has ended."""
STDERR_TAIL_NBYTES: Final = 4096

MessageT = TypeVar("MessageT", bound=msgspec.Struct)


class ChildFailedError(AioTransferError):
    """A child process exited, reported a failure, or answered with a wrong message."""

    def __init__(self, name: str, reason: str, stderr: str = "") -> None:
        """Build the message from the process name, the reason and the end of its standard error."""
        self.name = name
        self.reason = reason
        self.stderr = stderr
        super().__init__(f"{name} failed: {reason}" + (f"\n{stderr}" if stderr else ""))


class Child:
    """``python -m module`` in a process of its own, which never outlives the ``async with`` block.

    If this process is killed, the child's input ends, and that makes it exit too.
    """

    def __init__(self, module: str, name: str, decoder: msgspec.json.Decoder[Any]) -> None:
        """Start the process.

        :param name: for error messages
        :param decoder: of the messages it may send, :class:`~aio_transfer.subprocesses.json_lines.Failed` among them
        """
        self.name = name
        # A file: a child that writes much to a pipe which nobody reads would block.
        self._stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill()
        try:
            self._process = start_module(
                module, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr, bufsize=0
            )
        except BaseException:
            self._stderr.close()
            raise
        self._stdin, self._stdout = _require_pipe(self._process.stdin), _require_pipe(self._process.stdout)
        self._lines = JsonLines(self._stdout.fileno(), self._stdin.fileno(), name, decoder)

    @property
    def pid(self) -> int:
        """Process id of the child."""
        return self._process.pid

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        :raises ChildFailedError: the process has exited
        """
        try:
            self._lines.send(message)
        except BrokenPipeError as error:
            raise self._exit_error() from error

    async def receive(self, kind: type[MessageT]) -> MessageT:
        """Wait for one message of a given type.

        :raises ChildFailedError: the process has exited, reports a failure, or sends another message
        """
        message = await self._lines.receive()
        if message is None:
            raise self._exit_error()
        return require_message(message, kind, self.name, self._stderr_tail)

    async def __aenter__(self) -> Self:
        """Return the child itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End its input and wait up to :data:`GRACE_S`; after an error, or if it does not exit, kill it."""
        self._stdin.close()
        if kind is None:
            with anyio.move_on_after(GRACE_S):
                while await self._lines.receive() is not None:
                    pass
        self.kill()

    def kill(self) -> None:
        """Kill the process if it still runs, reap it, and close all pipes. Idempotent."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._stdin, self._stdout, self._stderr):
            stream.close()

    def _exit_error(self) -> ChildFailedError:
        """Explain the end of its output: the process is exiting too, or has closed its standard output."""
        try:
            code = self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return ChildFailedError(self.name, "closed its output", self._stderr_tail())
        return ChildFailedError(self.name, f"exited with status {code}", self._stderr_tail())

    def _stderr_tail(self) -> str:
        """Return the end of its standard error."""
        nbytes = os.fstat(self._stderr.fileno()).st_size
        # pread: the child writes at the file's only position.
        return os.pread(self._stderr.fileno(), STDERR_TAIL_NBYTES, max(0, nbytes - STDERR_TAIL_NBYTES)).decode(
            errors="replace"
        )


def require_message(
    message: msgspec.Struct, kind: type[MessageT], name: str, stderr_tail: Callable[[], str] = lambda: ""
) -> MessageT:
    """Return a message if it has the expected type.

    :param name: of the sending process
    :param stderr_tail: returns the end of its standard error
    :raises ChildFailedError: it has another type, or reports a failure
    """
    if isinstance(message, Failed):
        raise ChildFailedError(name, message.reason, stderr_tail())
    if not isinstance(message, kind):
        raise ChildFailedError(name, f"sent {type(message).__name__} instead of {kind.__name__}", stderr_tail())
    return message


def start_module(module: str, **streams: Any) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` with this interpreter and this very package.

    :param streams: as :class:`subprocess.Popen` takes them
    """
    command = [sys.executable, "-P", "-m", module]  # -P: a checkout in the current directory is not what is installed
    return subprocess.Popen(command, env=_environment(), **streams)  # noqa: S603 - our own interpreter and module


def _environment() -> dict[str, str]:
    """Return our environment, with this package first on the path whatever the child's working directory is."""
    package_root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


def _require_pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise TypeError("Popen was not asked for a pipe")
    return stream
