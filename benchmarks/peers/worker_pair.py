"""The two worker processes of one library, seen from the comparing process."""

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
RESPONSE_TIMEOUT_S: Final = 60.0
EXIT_TIMEOUT_S: Final = 5.0
LINE_NBYTES: Final = 1 << 22
STDERR_NBYTES: Final = 1 << 20
WORKER: Final = Path(__file__).with_name("worker.py")


class WorkerPair:
    """Two workers, which never outlive the ``async with`` block. They sleep, or are stopped, between requests."""

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
        self._stack.push_async_callback(self._exit)
        both_connected = asyncio.Event()

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            hello = msgspec.json.decode(await reader.readline())
            self._ends[hello["role"]] = reader, writer
            self._pids[hello["role"]] = hello["pid"]
            if len(self._ends) == len((INITIATOR, TARGET)):
                both_connected.set()

        server = await asyncio.start_unix_server(connected, f"{folder}/control", limit=LINE_NBYTES)
        self._stack.callback(server.close)
        self._spawn(folder)
        await self._unless_exited(both_connected.wait())
        addresses = await self.both("open")
        await asyncio.gather(
            *(self._request(role, "connect", other=addresses[1 - role]) for role in (INITIATOR, TARGET))
        )

    def _spawn(self, folder: str) -> None:
        peer = self._peer
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"} | dict(peer.environment.get(self._path, {}))
        environment.pop("PYTHONSAFEPATH", None)  # the worker imports the modules in its own folder
        start = {"adapter": peer.adapter, "path": self._path, "folder": folder, "options": peer.options}
        for role in (INITIATOR,) if peer.mpi else (INITIATOR, TARGET):
            options = msgspec.json.encode(start | {"role": role}).decode()
            command = [self._python, str(WORKER), options]
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

    async def both(self, name: str, **arguments: Any) -> list[Any]:
        """Send a request to both, and return their results."""
        return await asyncio.gather(*(self._request(role, name, **arguments) for role in (INITIATOR, TARGET)))

    async def check(self) -> None:
        """Compare the target's bytes with the source's.

        :raises CannotRunError: a byte differs
        """
        await self._request(TARGET, "check")

    async def sample(self, active: str, passive: str, iterations: int) -> Sample:
        """Measure ``active`` at the initiator while the target runs ``passive``."""
        pids = list(self._pids.values())
        timings, _ = await asyncio.gather(
            self._request(INITIATOR, active, iterations=iterations, pids=pids),
            self._request(TARGET, passive, iterations=iterations),
        )
        return Sample(**timings)

    def stop(self) -> None:
        """Stop both processes with SIGSTOP: some libraries have threads that never sleep."""
        for pid in self._pids.values():
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Resume both processes."""
        for pid in self._pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _request(self, role: int, name: str, **arguments: Any) -> Any:
        reader, writer = self._ends[role]
        writer.write(msgspec.json.encode({"request": name, "arguments": arguments}) + b"\n")
        line = await self._unless_exited(reader.readline(), name)
        response = msgspec.json.decode(line) if line else {"error": last_line(self._output())}
        if "error" in response:
            raise CannotRunError(f"{self._peer.name}: {response['error']}")
        return response["result"]

    async def _unless_exited(self, awaitable: Any, name: str = "start") -> Any:
        """Wait, and fail as soon as one of the processes has exited."""
        task = asyncio.ensure_future(awaitable)
        for _ in range(int(RESPONSE_TIMEOUT_S * 10)):
            done, _ = await asyncio.wait([task], timeout=0.1)
            if done:
                return task.result()
            if any(process.poll() is not None for process in self._started):
                task.cancel()
                raise CannotRunError(last_line(self._output()))
        task.cancel()
        raise CannotRunError(f"{name}: no response within {RESPONSE_TIMEOUT_S:g} s")

    def _output(self) -> str:
        # pread: the workers write at the file's only position.
        return os.pread(self._stderr.fileno(), STDERR_NBYTES, 0).decode(errors="replace")

    async def _exit(self) -> None:
        """Close the connections, wait for the processes to exit, and kill those that have not."""
        self.resume()
        for _, writer in self._ends.values():
            writer.close()
        for _ in range(int(EXIT_TIMEOUT_S * 20)):
            if all(process.poll() is not None for process in self._started):
                break
            await asyncio.sleep(0.05)
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # a session of its own: mpiexec and its children
            process.wait()


@contextlib.contextmanager
def stopped(workers: WorkerPair) -> Iterator[None]:
    """Stop both processes during a block."""
    workers.stop()
    try:
        yield
    finally:
        workers.resume()
