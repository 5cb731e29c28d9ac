"""Prefill process of the demo: computes the KV cache of a prompt and writes each layer's pages as soon as it is done.

Started by the decode process as ``python -m aio_transfer.demo.prefill``; exits when its input ends.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import numpy as np

from aio_transfer import RemoteRegion, TransferEngine
from aio_transfer.demo.blas import blas_threads
from aio_transfer.demo.messages import DEMO_MESSAGES, CacheOffer, PrefillReady, PrefillRequest, PrefillResult
from aio_transfer.demo.model import BLAS_THREADS, Transformer, encode
from aio_transfer.errors import ProtocolError
from aio_transfer.subprocesses.child_program import run_child_program

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from aio_transfer import Region, Transfer
    from aio_transfer.subprocesses.json_lines import JsonLines

__all__ = ("main",)

PARENT: Final = "the decode process"
WARM_UP_PROMPT: Final = b"warm"


@dataclass(frozen=True, slots=True)
class _RegisteredArray:
    array: NDArray[Any]
    region: Region


class PrefillRank:
    """One prefill rank, connected to one decode process.

    Every rank computes the whole model; of each page it sends the part that it would own under tensor parallelism.
    """

    def __init__(
        self, engine: TransferEngine, offer: CacheOffer, cache: _RegisteredArray, tail: _RegisteredArray
    ) -> None:
        """Draw the weights; use :func:`connect_rank`."""
        self.config = offer.config()
        self._engine = engine
        self._offer = offer
        self._cache = cache
        self._tail = tail
        self._model = Transformer(self.config)
        self._remote_cache = RemoteRegion.from_bytes(offer.cache)
        self._remote_tail = RemoteRegion.from_bytes(offer.tail)
        self._shard = self.config.shard(offer.rank, offer.ranks)
        self._spans: list[tuple[float, float]] = []

    async def warm_up(self) -> None:
        """Connect, and compute a few tokens, so that the first request measures neither."""
        await self._engine.connect(self._remote_cache.peer)
        pages = range(self.config.pages_for(len(WARM_UP_PROMPT)))
        await anyio.to_thread.run_sync(
            lambda: list(self._model.prefill_layers(encode(WARM_UP_PROMPT), self._cache.array, pages, self._tail.array))
        )

    async def prefill(self, request: PrefillRequest) -> PrefillResult:
        """Process one prompt and write its pages layer by layer; returns when every write was acknowledged.

        There is no closing message: the decode side knows how many counts to expect.
        """
        # In another order than the peer's pages, so that only the lists of ids relate the two.
        ids = np.arange(len(request.page_ids))[::-1].copy()
        layers = self._model.prefill_layers(encode(request.prompt), self._cache.array, ids, self._tail.array)
        transfers: list[Transfer] = []
        async with anyio.create_task_group() as group:
            # In a thread, so that the event loop runs while NumPy computes.
            while (layer := await anyio.to_thread.run_sync(next, layers, None)) is not None:
                transfers.append(self._submit_layer(layer, ids, np.array(request.page_ids)))
                group.start_soon(self._record_span, transfers[-1])
            if self._offer.rank == 0:
                transfers.append(self._submit_tail())
                group.start_soon(self._record_span, transfers[-1])
        return self._result(transfers)

    def _submit_layer(self, layer: int, ids: NDArray[np.int64], remote_ids: NDArray[np.int64]) -> Transfer:
        """Submit the writes of one layer: this rank's shard of each page."""
        stride, shard = self.config.page_nbytes, self._shard
        source = self._cache.region.pages(
            ids + layer * self._cache.array.shape[1],
            shard.nbytes,
            stride_nbytes=stride,
            offset_nbytes=shard.offset_nbytes,
        )
        target = self._remote_cache.pages(
            remote_ids + layer * self._offer.pages,
            shard.nbytes,
            stride_nbytes=stride,
            offset_nbytes=shard.offset_nbytes,
        )
        return self._engine.submit_write_pages(source, target, counter=self._remote_cache.counter)

    def _submit_tail(self) -> Transfer:
        return self._engine.submit_write(self._tail.region[:], self._remote_tail[:], counter=self._remote_cache.counter)

    async def _record_span(self, transfer: Transfer) -> None:
        begin = time.perf_counter()
        await transfer
        self._spans.append((begin, time.perf_counter()))

    def _result(self, transfers: list[Transfer]) -> PrefillResult:
        path = transfers[0].path
        assert path is not None  # noqa: S101 - warm_up() has connected
        return PrefillResult(
            nbytes=sum(transfer.nbytes for transfer in transfers),
            busy_s=_covered_s(self._spans),
            backend=path.backend,
            provider=path.provider,
            path=str(path),
        )


def _covered_s(spans: list[tuple[float, float]]) -> float:
    """Return how many seconds lie within at least one span."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


async def connect_rank(engine: TransferEngine, offer: CacheOffer) -> PrefillRank:
    """Allocate and register memory for the longest prompt, connect, and warm up."""
    config = offer.config()
    cache = await _allocate(engine, (config.layers, config.pages_for(offer.max_tokens), config.page_nbytes), "u1")
    tail = await _allocate(engine, (config.d_model,), "f4")
    cache.array[:] = 0  # as in a server that has run for long, so that no request pays for page faults
    rank = PrefillRank(engine, offer, cache, tail)
    await rank.warm_up()
    return rank


async def _allocate(engine: TransferEngine, shape: tuple[int, ...], dtype: str) -> _RegisteredArray:
    array = engine.allocate(shape, dtype)
    return _RegisteredArray(array, await engine.register(array))


async def _serve(lines: JsonLines) -> int:
    offer = await lines.receive()
    if not isinstance(offer, CacheOffer):
        raise ProtocolError(PARENT, f"expected an offer, not {offer!r}")
    async with TransferEngine(backend=offer.backend) as engine:
        rank = await connect_rank(engine, offer)
        lines.send(PrefillReady())
        while (request := await lines.receive()) is not None:
            if not isinstance(request, PrefillRequest):
                raise ProtocolError(PARENT, f"expected a request, not {request!r}")
            lines.send(await _prefill_unless_closed(rank, request, lines))
    return 0


async def _prefill_unless_closed(rank: PrefillRank, request: PrefillRequest, lines: JsonLines) -> PrefillResult:
    """Process a request, and cancel it if the decode process exits meanwhile."""
    results: list[PrefillResult] = []
    async with anyio.create_task_group() as group:

        async def prefill() -> None:
            results.append(await rank.prefill(request))
            group.cancel_scope.cancel()

        group.start_soon(prefill)
        if await lines.receive() is not None:
            raise ProtocolError(PARENT, "sent a request before the previous one was done")
        group.cancel_scope.cancel()
    if not results:
        raise ProtocolError(PARENT, "exited during a request")
    return results[0]


def main() -> int:
    """Serve the decode process over stdin and stdout; returns the exit status."""

    def serve(lines: JsonLines) -> int:
        with blas_threads(BLAS_THREADS):
            return anyio.run(_serve, lines)

    return run_child_program(serve, parent=PARENT, decoder=DEMO_MESSAGES)


if __name__ == "__main__":
    raise SystemExit(main())
