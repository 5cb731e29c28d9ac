"""Both processes of one library, seen from the one that compares."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from environments import CannotRunError, last_line

from aio_transfer.bench.report.statistics import Sample

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import IO, Self

    from catalog import Peer

INITIATOR, TARGET = range(2)
ANSWER_S: Final = 60.0
LEAVE_S: Final = 5.0
LINE_NBYTES: Final = 1 << 22
STDERR_NBYTES: Final = 1 << 20
WORKER: Final = Path(__file__).with_name("worker.py")


class Processes:
    """Two workers, which do not outlive the ``async with`` block. They sleep or are stopped unless they are asked."""

    def __init__(self, peer: Peer, path: str, python: str) -> None:
        self._peer, self._path, self._python = peer, path, python
        self._started: list[subprocess.Popen[bytes]] = []
        self._ends: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
        self._pids: dict[int, int] = {}
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="aio-transfer-peers-"))
        self._stderr: IO[bytes] = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._stack.push_async_callback(self._leave)
        arrived = asyncio.Event()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = msgspec.json.decode(await reader.readline())
            self._ends[hello["role"]] = reader, writer
            self._pids[hello["role"]] = hello["pid"]
            if len(self._ends) == len((INITIATOR, TARGET)):
                arrived.set()

        server = await asyncio.start_unix_server(connected, f"{folder}/control", limit=LINE_NBYTES)
        self._stack.callback(server.close)
        self._spawn(folder)
        await self._or_death(arrived.wait())
        offers = await self.both("open")
        await asyncio.gather(*(self._ask(role, "join", other=offers[1 - role]) for role in (INITIATOR, TARGET)))

    def _spawn(self, folder: str) -> None:
        peer = self._peer
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(peer.environment.get(self._path, {}))
        environment.pop("PYTHONSAFEPATH", None)  # the worker finds its modules beside itself
        start = {"adapter": peer.adapter, "path": self._path, "folder": folder, "options": peer.options}
        for role in (INITIATOR,) if peer.mpi else (INITIATOR, TARGET):
            said = msgspec.json.encode(start | {"role": role}).decode()
            command = [self._python, str(WORKER), said]
            if peer.mpi:
                command = [str(Path(self._python).with_name("mpiexec")), "-launcher", "fork", "-n", "2", *command]
            self._started.append(
                subprocess.Popen(  # noqa: S603
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._stderr,
                    stderr=self._stderr,
                    env=environment,
                    start_new_session=True,
                )
            )

    async def both(self, do: str, **arguments: Any) -> list[Any]:
        """Let both do something, and return what they say."""
        return await asyncio.gather(*(self._ask(role, do, **arguments) for role in (INITIATOR, TARGET)))

    async def check(self) -> None:
        """Compare what has arrived.

        :raises CannotRunError: a byte differs
        """
        await self._ask(TARGET, "check")

    async def sample(self, active: str, passive: str, rounds: int) -> Sample:
        """Let one act, and the other do its part."""
        pids = list(self._pids.values())
        said, _ = await asyncio.gather(
            self._ask(INITIATOR, active, rounds=rounds, pids=pids), self._ask(TARGET, passive, rounds=rounds)
        )
        return Sample(**said)

    def stop(self) -> None:
        """Let them do nothing at all: some have threads that never sleep."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End :meth:`stop`."""
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _ask(self, role: int, do: str, **arguments: Any) -> Any:
        reader, writer = self._ends[role]
        writer.write(msgspec.json.encode({"do": do, "arguments": arguments}) + b"\n")
        line = await self._or_death(reader.readline(), do)
        answer = msgspec.json.decode(line) if line else {"failed": last_line(self._said())}
        if "failed" in answer:
            raise CannotRunError(f"{self._peer.name}: {answer['failed']}")
        return answer["say"]

    async def _or_death(self, waited: Any, do: str = "start") -> Any:
        """Wait for something that a dead process would never do."""
        task = asyncio.ensure_future(waited)
        for _ in range(int(ANSWER_S * 10)):
            done, _ = await asyncio.wait([task], timeout=0.1)
            if done:
                return task.result()
            if any(process.poll() is not None for process in self._started):
                task.cancel()
                raise CannotRunError(last_line(self._said()))
        task.cancel()
        raise CannotRunError(f"{do}: no answer within {ANSWER_S:g} s")

    def _said(self) -> str:
        # Not a read: the children write where this file's only position is.
        return os.pread(self._stderr.fileno(), STDERR_NBYTES, 0).decode(errors="replace")

    async def _leave(self) -> None:
        """Hang up, wait a little, and kill what is still there."""
        self.go_on()
        for _, writer in self._ends.values():
            writer.close()
        for _ in range(int(LEAVE_S * 20)):
            if all(process.poll() is not None for process in self._started):
                break
            await asyncio.sleep(0.05)
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: mpiexec and its children
            process.wait()


@contextlib.contextmanager
def stopped(processes: Processes) -> Iterator[None]:
    """Stop both for as long as a block lasts."""
    processes.stop()
    try:
        yield
    finally:
        processes.go_on()
