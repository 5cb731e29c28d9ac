"""The prefill process of the demo: reads a prompt, and writes each layer's pages away as soon as they exist.

Run as ``python -m aio_transfer.demo.prefill`` by the decode side, which speaks first. Leaves when its input ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.demo.blas import blas_threads
from aio_transfer.demo.messages import DEMO, Done, Offer, Ready, Request
from aio_transfer.demo.model import BLAS_THREADS, Model, encode
from aio_transfer.errors import AioTransferError, ProtocolError
from aio_transfer.subprocesses.json_lines import Failed, Lines

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer import Region, Transfer

__all__ = ("main",)

STDIN, STDOUT, STDERR = range(3)
WARM_UP: Final = b"warm"


class Prefill:
    """One prefill rank, joined to one decode process.

    Every rank computes the whole model; what it *sends* of each page is what it would own under tensor parallelism.
    """

    def __init__(self, engine: TransferEngine, offer: Offer) -> None:
        """Draw the weights and take memory for the longest prompt."""
        self.config = offer.config()
        self._engine = engine
        self._offer = offer
        self._model = Model(self.config)
        pages = self.config.pages_for(offer.tokens)
        self._cache: NDArray[np.uint8] = engine.allocate((self.config.layers, pages, self.config.page_nbytes), "u1")
        self._tail: NDArray[np.float32] = engine.allocate((self.config.d_model,), "f4")
        self._cache[:] = 0  # a server's memory has been in use for long: no page fault belongs to a request
        self._remote_cache = RemoteRegion.from_bytes(offer.cache)
        self._remote_tail = RemoteRegion.from_bytes(offer.tail)
        self._shard = self.config.shard(offer.rank, offer.ranks)
        self._region: Region | None = None
        self._tail_region: Region | None = None
        self._spans: list[tuple[float, float]] = []

    async def prepare(self) -> None:
        """Register, connect, and compute a few tokens, so that a request finds everything warm."""
        self._region = await self._engine.register(self._cache)
        self._tail_region = await self._engine.register(self._tail)
        await self._engine.connect(self._remote_cache.peer)
        pages = range(self.config.pages_for(len(WARM_UP)))
        await anyio.to_thread.run_sync(
            lambda: list(self._model.prefill_layers(encode(WARM_UP), self._cache, pages, self._tail))
        )

    async def serve(self, request: Request) -> Done:
        """Read one prompt and write its pages away, layer by layer; returns once every write was acknowledged.

        There is no closing message: the decode side knows how many counts to expect.
        """
        # Our own pages lie in another order than the peer's: nothing but the lists of ids says which is which.
        ids = np.arange(len(request.page_ids))[::-1].copy()
        layers = self._model.prefill_layers(encode(request.prompt), self._cache, ids, self._tail)
        transfers: list[Transfer] = []
        async with anyio.create_task_group() as group:
            # In a thread, so that our loop answers while NumPy computes.
            while (layer := await anyio.to_thread.run_sync(next, layers, None)) is not None:
                transfers.append(self._submit_layer(layer, ids, np.array(request.page_ids)))
                group.start_soon(self._time, transfers[-1])
            if self._offer.rank == 0:
                transfers.append(self._submit_tail())
                group.start_soon(self._time, transfers[-1])
        return self._summary(transfers)

    def _submit_layer(self, layer: int, ids: NDArray[np.int64], remote_ids: NDArray[np.int64]) -> Transfer:
        """Start one layer's pages, the shard of each that is ours, on their way."""
        assert self._region is not None  # noqa: S101 - prepare() comes first
        stride, shard = self.config.page_nbytes, self._shard
        source = self._region.pages(
            ids + layer * self._cache.shape[1], shard.nbytes, stride_nbytes=stride, offset_nbytes=shard.offset_nbytes
        )
        target = self._remote_cache.pages(
            remote_ids + layer * self._offer.pages,
            shard.nbytes,
            stride_nbytes=stride,
            offset_nbytes=shard.offset_nbytes,
        )
        return self._engine.submit_write_pages(source, target, counter=self._remote_cache.counter)

    def _submit_tail(self) -> Transfer:
        assert self._tail_region is not None  # noqa: S101 - prepare() comes first
        return self._engine.submit_write(self._tail_region[:], self._remote_tail[:], counter=self._remote_cache.counter)

    async def _time(self, transfer: Transfer) -> None:
        begin = time.perf_counter()
        await transfer
        self._spans.append((begin, time.perf_counter()))

    def _summary(self, transfers: list[Transfer]) -> Done:
        path = transfers[0].path
        assert path is not None  # noqa: S101 - prepare() has connected
        return Done(
            nbytes=sum(transfer.nbytes for transfer in transfers),
            busy_s=_covered(self._spans),
            backend=path.backend,
            provider=path.provider,
            path=str(path),
        )


def _covered(spans: list[tuple[float, float]]) -> float:
    """Return how many seconds lie within at least one span."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


async def _serve(lines: Lines) -> None:
    offer = await lines.receive()
    if not isinstance(offer, Offer):
        raise ProtocolError("the decode process", f"expected an offer, not {offer!r}")
    async with TransferEngine(backend=offer.backend) as engine:
        prefill = Prefill(engine, offer)
        await prefill.prepare()
        lines.send(Ready())
        while (request := await lines.receive()) is not None:
            if not isinstance(request, Request):
                raise ProtocolError("the decode process", f"expected a request, not {request!r}")
            lines.send(await _unless_closed(prefill, request, lines))


async def _unless_closed(prefill: Prefill, request: Request, lines: Lines) -> Done:
    """Serve a request, but stop when the decode process has gone away meanwhile."""
    done: list[Done] = []
    async with anyio.create_task_group() as group:

        async def serve() -> None:
            done.append(await prefill.serve(request))
            group.cancel_scope.cancel()

        group.start_soon(serve)
        if await lines.receive() is not None:
            raise ProtocolError("the decode process", "one request at a time")
        group.cancel_scope.cancel()
    if not done:
        raise ProtocolError("the decode process", "it went away in the middle of a request")
    return done[0]


def main() -> int:
    """Serve the decode process at the other end of our standard input and output; returns the exit status."""
    # Ctrl-C reaches the whole group; the decode process decides what becomes of it, and then our input ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints must not get among our lines.
    channel = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    lines = Lines(STDIN, channel, "the decode process", DEMO)
    try:
        with blas_threads(BLAS_THREADS):
            anyio.run(_serve, lines)
    except BrokenPipeError:
        return 1
    except Exception as error:  # noqa: BLE001 - told in full to whoever started us
        reason = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
        if not isinstance(reason, AioTransferError):
            traceback.print_exc()
        _tell(lines, f"{type(reason).__name__}: {reason}")
        return 1
    return 0


def _tell(lines: Lines, reason: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it
        lines.send(Failed(reason))


if __name__ == "__main__":
    raise SystemExit(main())
