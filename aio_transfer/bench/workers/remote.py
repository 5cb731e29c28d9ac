"""Measured processes of another host: ``aio-transfer bench listen`` starts them there, ``--connect`` finds them."""

from __future__ import annotations

import contextlib
import re
import select
import signal
import socket
import subprocess
from typing import TYPE_CHECKING, Final

from aio_transfer.bench.workers.messages import FROM_WORKER, WORKER
from aio_transfer.errors import UsageError
from aio_transfer.subprocesses.child import ChildFailedError, MessageT, command, environment, require_kind
from aio_transfer.subprocesses.json_lines import Lines

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    import msgspec

__all__ = ("Far", "parse_endpoint", "serve")

DIAL_S: Final = 5.0
_FORM: Final = re.compile(r"(?:\[(?P<six>[0-9a-fA-F:.%\w]+)\]|(?P<host>[^:\s\[\]]+)):(?P<port>\d{1,5})")
_GONE: Final = "the connection ended: its other end says why"


def parse_endpoint(text: str) -> tuple[str, int]:
    """Return host and port.

    :param text: ``HOST:PORT``, ``[IPV6]:PORT``
    :raises UsageError: it is anything else
    """
    found = _FORM.fullmatch(text)
    port = int(found["port"]) if found else 1 << 16
    if found is None or port >= 1 << 16:
        raise UsageError(f"{text!r} is no HOST:PORT: write 192.0.2.7:7471 or [2001:db8::7]:7471")
    return found["six"] or found["host"], port


class Far:
    """One process over there, which does not outlive the ``async with`` block: its input ends with the connection.

    :ivar here: our own address on the way there, for what the other side has to reach
    :ivar there: its address
    """

    def __init__(self, endpoint: str) -> None:
        """Connect; the listener starts the process.

        :raises ChildFailedError: nobody listens there
        """
        self.name = f"the process at {endpoint}"
        try:
            self._socket = socket.create_connection(parse_endpoint(endpoint), DIAL_S)
        except OSError as error:
            hint = f"cannot be reached: {error}; start `aio-transfer bench listen {endpoint}` there"
            raise ChildFailedError(self.name, hint) from error
        self._socket.setblocking(True)  # noqa: FBT003
        self.here, self.there = self._socket.getsockname()[0], self._socket.getpeername()[0]
        self._lines = Lines(self._socket.fileno(), self._socket.fileno(), self.name, FROM_WORKER)

    def send(self, message: msgspec.Struct) -> None:
        """Send one message.

        :raises ChildFailedError: it is gone
        """
        try:
            self._lines.send(message)
        except OSError as error:
            raise ChildFailedError(self.name, _GONE) from error

    async def receive(self, kind: type[MessageT]) -> MessageT:
        """Wait for one message, which must be a ``kind``.

        :raises ChildFailedError: it is gone, or says that it failed, or says something else
        """
        try:
            message = await self._lines.receive()
        except OSError as error:
            raise ChildFailedError(self.name, _GONE) from error
        if message is None:
            raise ChildFailedError(self.name, _GONE)
        return require_kind(message, kind, self.name)

    async def __aenter__(self) -> Self:
        """Return itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """Let Ctrl-C do nothing but be read here, as the number of its signal, between two steps.

    Raised in the middle of one it could leave a process behind. And one that comes just before a system call, or to a
    thread of a library, would not end the call; the signal's mask cannot help, since such a thread takes it then.
    """
    woken, waking = socket.socketpair()
    with woken, waking:
        waking.setblocking(False)  # noqa: FBT003
        before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
        handler = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            yield woken
        finally:
            signal.signal(signal.SIGINT, handler)
            signal.set_wakeup_fd(before)


def serve(endpoint: str, told: Callable[[str], object] = lambda _: None) -> None:
    """Start a measured process for everybody who connects, until interrupted.

    Whoever reaches the port may let this host take memory and measure: it is for networks that are trusted, and for as
    long as a measurement takes.

    :param endpoint: where to listen; port 0 takes any
    :param told: called with the address once it listens
    :raises UsageError: it cannot be listened there
    """
    host, port = parse_endpoint(endpoint)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on {endpoint}: {error}") from error
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with listener, _signals() as signals:
            bound, number = listener.getsockname()[:2]
            told(f"[{bound}]:{number}" if ":" in bound else f"{bound}:{number}")
            while True:
                if signals in select.select([listener, signals], [], [])[0]:
                    if signal.SIGINT in signals.recv(64):
                        raise KeyboardInterrupt
                    continue
                with listener.accept()[0] as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    # It speaks over its standard input and output, as one that was started here does.
                    fd = connection.fileno()
                    worker = subprocess.Popen(command(WORKER), stdin=fd, stdout=fd, env=environment())  # noqa: S603
                    workers.append(worker)
                workers = [worker for worker in workers if worker.poll() is None]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
