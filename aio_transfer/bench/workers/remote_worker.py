"""Workers on another host: ``aio-transfer bench listen`` starts them there, ``--connect`` connects to it."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
from typing import TYPE_CHECKING, Final

from aio_transfer.bench.workers.messages import WORKER_MESSAGES, WORKER_MODULE
from aio_transfer.errors import UsageError
from aio_transfer.subprocesses.child import ChildFailedError, MessageT, require_message, start_module
from aio_transfer.subprocesses.json_lines import JsonLines

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    import msgspec

__all__ = ("RemoteWorker", "parse_endpoint", "serve")

CONNECT_TIMEOUT_S: Final = 5.0
_ENDPOINT: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\s\[\]]+)):(?P<port>\d{1,5})")
_CLOSED: Final = "the connection was closed: see the output on that host"


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return host and port.

    :param text: ``HOST:PORT`` or ``[IPV6]:PORT``
    :raises UsageError: it has another form
    """
    found = _ENDPOINT.fullmatch(text)
    port = int(found["port"]) if found else 1 << 16
    if found is None or port >= 1 << 16:
        raise UsageError(f"{text!r} is not HOST:PORT, such as 192.0.2.7:7471 or [2001:db8::7]:7471")
    return found["six"] or found["host"], port


class RemoteWorker:
    """Connection to one worker on another host, which never outlives the ``async with`` block.

    :ivar local_host: our own address on that connection, which the other host can reach
    :ivar remote_host: address of the other host
    """

    def __init__(self, endpoint: str) -> None:
        """Connect; the listener starts the worker.

        :raises ChildFailedError: nothing listens there
        """
        self.name = f"the process at {endpoint}"
        try:
            self._socket = socket.create_connection(parse_endpoint(endpoint), CONNECT_TIMEOUT_S)
        except OSError as error:
            hint = f"cannot be reached: {error}; start `aio-transfer bench listen {endpoint}` there"
            raise ChildFailedError(self.name, hint) from error
        self._socket.settimeout(None)
        self.local_host, self.remote_host = self._socket.getsockname()[0], self._socket.getpeername()[0]
        self._lines = JsonLines(self._socket.fileno(), self._socket.fileno(), self.name, WORKER_MESSAGES)

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        :raises ChildFailedError: the connection was closed
        """
        try:
            self._lines.send(message)
        except OSError as error:
            raise ChildFailedError(self.name, _CLOSED) from error

    async def receive(self, kind: type[MessageT]) -> MessageT:
        """Wait for one message of a given type.

        :raises ChildFailedError: the connection was closed, or the worker reports a failure or sends another message
        """
        try:
            message = await self._lines.receive()
        except OSError as error:
            raise ChildFailedError(self.name, _CLOSED) from error
        if message is None:
            raise ChildFailedError(self.name, _CLOSED)
        return require_message(message, kind, self.name)

    async def __aenter__(self) -> Self:
        """Return the connection itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the connection, which ends the worker's input."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def _interrupts() -> Iterator[socket.socket]:
    """Turn SIGINT into a byte on the yielded socket, the signal number, to be read between two steps of the loop.

    A KeyboardInterrupt in the middle of a step could leak a process. A signal just before a system call, or one that a
    library's thread takes, would not interrupt the call. Blocking it does not help: such a thread takes it then.
    """
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.settimeout(0)
        previous_fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        previous_handler = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            yield reader
        finally:
            signal.signal(signal.SIGINT, previous_handler)
            signal.set_wakeup_fd(previous_fd)


def serve(endpoint: str, on_listening: Callable[[str], object] = lambda _: None) -> None:
    """Start one worker per connection, until interrupted.

    Any process that can reach the port can make this host allocate memory and run the benchmark. Use it in trusted
    networks only, for the time of a measurement.

    :param endpoint: address to listen on; port 0 takes any free one
    :param on_listening: called with the bound address
    :raises UsageError: the address cannot be listened on
    """
    host, port = parse_endpoint(endpoint)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on {endpoint}: {error}") from error
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with listener, _interrupts() as interrupts:
            bound, number = listener.getsockname()[:2]
            on_listening(f"[{bound}]:{number}" if ":" in bound else f"{bound}:{number}")
            while True:
                if interrupts in select.select([listener, interrupts], [], [])[0]:
                    if signal.SIGINT in interrupts.recv(64):
                        raise KeyboardInterrupt
                    continue
                workers = [worker for worker in workers if worker.poll() is None]
                workers.append(_start_worker(listener))
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _start_worker(listener: socket.socket) -> subprocess.Popen[bytes]:
    """Accept a connection, which becomes stdin and stdout of a worker, as a pipe is for a local one."""
    with listener.accept()[0] as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = connection.fileno()
        return start_module(WORKER_MODULE, stdin=fd, stdout=fd)
