"""Disaggregated prefill and decode: one process reads the prompt, another one answers, and pages move between them.

This process is the decode side and hands out the pages. Prefill processes write each layer into them as soon as it is
computed; decode begins when its counter says that everything is there, and only then. Afterwards the same text goes
through the same model in this one process alone: tokens and pages must be the same bits.
"""

from __future__ import annotations

import dataclasses
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import numpy as np

from aio_transfer import PeerLostError, TransferEngine, UsageError
from aio_transfer.demo.blas import blas_threads
from aio_transfer.demo.messages import DEMO, Done, Offer, Ready, Request
from aio_transfer.demo.model import BLAS_THREADS, Model, ModelConfig, encode
from aio_transfer.subprocesses.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aio_transfer import ImmCounter, Region

__all__ = ("DemoOptions", "DemoReport", "run_demo")

MAX_PROMPT_NBYTES: Final = 8192
"""Attention costs the square of it: 8 KiB take some 6 s on one core."""
EXPLANATION_S: Final = 1.0
"""How long the reason for a lost peer, its exit status and last words, may take to come through its pipe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """What to run.

    :param input: text to read, of which at most :data:`MAX_PROMPT_NBYTES` are used; ``None`` for the one we ship
    :param backend: as for ``TransferEngine``
    :param prefills: prefill processes, each of which sends its heads' part of every page: 1, 2 or 4
    :param tokens: how many to generate
    """

    input: Path | None = None
    backend: str = "auto"
    layers: int = 8
    prefills: int = 1
    tokens: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What came of it.

    :param path: what carried the pages, in words
    :param pages: of the prompt, in all layers
    :param counts: what the decode side waited for: one per page and prefill process, one for the tail
    :param gb_per_s: 10**9 bytes per second, over the time in which writes were under way
    :param ttft_s: time to first token, from the request, with prefill elsewhere and the transfer
    :param ttft_alone_s: the same in a single process
    :param match: tokens and pages are the same bits as in a single process
    """

    match: bool
    tokens_match: bool
    pages_match: bool
    backend: str
    provider: str
    path: str
    input: str
    input_nbytes: int
    prompt_nbytes: int
    layers: int
    prefills: int
    seed: int
    pages: int
    page_nbytes: int
    counts: int
    nbytes: int
    gb_per_s: float
    ttft_s: float
    ttft_alone_s: float
    tokens: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class _Answer:
    ttft_s: float
    tokens: list[int]
    pages: NDArray[np.uint8]


async def run_demo(
    options: DemoOptions, on_arrival: Callable[[int, int], None] = lambda _arrived, _all: None
) -> DemoReport:
    """Run both ways and compare.

    :param on_arrival: called now and then with how many counts have arrived, of how many
    :raises UsageError: an option is out of range, or the input is empty
    :raises BackendUnavailableError: the backend asked for cannot run here
    :raises ChildFailedError: a prefill process died or gave up
    :raises OSError: the input cannot be read
    :cancellation: every child is killed
    """
    name, text = _read(options)
    prompt = text[:MAX_PROMPT_NBYTES]
    if options.tokens < 1:
        message = f"{options.tokens} tokens cannot be generated"
        raise UsageError(message)
    model = Model(ModelConfig(layers=options.layers, seed=options.seed))
    model.config.shard(0, options.prefills)  # refuses what does not divide, before anything is started
    decode = _Decode(model, prompt, options)
    with blas_threads(BLAS_THREADS):
        answer, done = await decode.run(on_arrival)
        alone = await anyio.to_thread.run_sync(_answer_alone, model, prompt, decode.ids, options.tokens)
    nbytes = sum(part.nbytes for part in done)
    tokens_match = answer.tokens == alone.tokens
    pages_match = bool(np.array_equal(answer.pages, alone.pages))
    return DemoReport(
        match=tokens_match and pages_match,
        tokens_match=tokens_match,
        pages_match=pages_match,
        backend=done[0].backend,
        provider=done[0].provider,
        path=done[0].path,
        input=name,
        input_nbytes=len(text),
        prompt_nbytes=len(prompt),
        layers=options.layers,
        prefills=options.prefills,
        seed=options.seed,
        pages=options.layers * decode.filled,
        page_nbytes=model.config.page_nbytes,
        counts=decode.counts,
        nbytes=nbytes,
        gb_per_s=nbytes / max(part.busy_s for part in done) / 1e9,
        ttft_s=answer.ttft_s,
        ttft_alone_s=alone.ttft_s,
        tokens=answer.tokens,
        text=bytes(answer.tokens).decode("ascii"),
    )


def _read(options: DemoOptions) -> tuple[str, bytes]:
    """Return the input's name and bytes."""
    if options.input is None:
        name, text = "the text we ship", resources.files("aio_transfer.demo").joinpath("prompt.txt").read_bytes()
    else:
        name, text = str(options.input), options.input.read_bytes()
    if not text:
        message = f"{name} is empty: there is nothing to read"
        raise UsageError(message)
    return name, text


class _Decode:
    """The decode side: hands out pages, asks for a prompt to be read into them, and answers."""

    def __init__(self, model: Model, prompt: bytes, options: DemoOptions) -> None:
        config = model.config
        self._model = model
        self._prompt = prompt
        self._options = options
        self.filled = config.pages_for(len(prompt))
        needed = config.pages_for(len(prompt) + options.tokens - 1)
        # As in a server that has run for a while: the free pages are scattered over a larger pool.
        self._pool = needed + needed // 4 + 1
        self.ids: NDArray[np.int64] = np.random.default_rng(options.seed).permutation(self._pool)[:needed]
        self.counts = config.layers * self.filled * options.prefills + 1

    async def run(self, on_arrival: Callable[[int, int], None]) -> tuple[_Answer, list[Done]]:
        """Start the prefill processes, have the prompt read, and answer."""
        config = self._model.config
        async with TransferEngine(backend=self._options.backend) as engine, AsyncExitStack() as children:
            cache: NDArray[np.uint8] = engine.allocate((config.layers, self._pool, config.page_nbytes), "u1")
            cache[:] = 0  # a server's memory has been in use for long: no page fault belongs to a request
            tail: NDArray[np.float32] = engine.allocate((config.d_model,), "f4")
            regions = await engine.register(cache), await engine.register(tail)
            counter = engine.counter()
            ranks = range(self._options.prefills)
            # All are started before any is waited for: each takes a second to import and to draw its weights.
            prefills = [
                await children.enter_async_context(Child("aio_transfer.demo.prefill", f"prefill process {rank}", DEMO))
                for rank in ranks
            ]
            for rank, child in zip(ranks, prefills, strict=True):
                child.send(self._offer(rank, *regions, counter))
            for child in prefills:
                await child.receive(Ready)
            return await self._answer(prefills, cache, tail, counter, on_arrival)

    def _offer(self, rank: int, cache: Region, tail: Region, counter: ImmCounter) -> Offer:
        return Offer(
            rank=rank,
            ranks=self._options.prefills,
            backend=self._options.backend,
            model=dataclasses.asdict(self._model.config),
            pages=self._pool,
            cache=bytes(cache.descriptor(counter=counter)),
            tail=bytes(tail.descriptor()),
            tokens=len(self._prompt),
        )

    async def _answer(
        self,
        prefills: list[Child],
        cache: NDArray[np.uint8],
        tail: NDArray[np.float32],
        counter: ImmCounter,
        on_arrival: Callable[[int, int], None],
    ) -> tuple[_Answer, list[Done]]:
        done: list[Done] = []

        async def collect(child: Child) -> None:
            done.append(await child.receive(Done))

        try:
            async with anyio.create_task_group() as group:
                begin = time.perf_counter()
                for child in prefills:
                    child.send(Request(self._prompt, self.ids[: self.filled].tolist()))
                    group.start_soon(collect, child)
                await self._all_arrived(counter, on_arrival)
                generated = self._model.generate(tail, len(self._prompt), cache, self.ids, self._options.tokens)
                tokens = [next(generated)]
                ttft_s = time.perf_counter() - begin
                tokens += await anyio.to_thread.run_sync(list, generated)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return _Answer(ttft_s, tokens, cache[:, self.ids]), done

    async def _all_arrived(self, counter: ImmCounter, on_arrival: Callable[[int, int], None]) -> None:
        """Wait for everything that was asked for, a layer's worth at a time: which layers these are does not matter."""
        try:
            for _ in range(self._options.layers):
                await counter.wait(self.filled * self._options.prefills)
                on_arrival(counter.value, self.counts)
            await counter.wait(1)
            on_arrival(counter.value, self.counts)
        except PeerLostError:
            # Its pipe is about to say more about it than the engine can know, and that ends this sleep.
            await anyio.sleep(EXPLANATION_S)
            raise


def _answer_alone(model: Model, prompt: bytes, ids: NDArray[np.int64], tokens: int) -> _Answer:
    """Read and answer in this process alone, with pages of our own."""
    config = model.config
    cache = np.full((config.layers, int(ids.max()) + 1, config.page_nbytes), 0, np.uint8)  # in use, as above
    tail = np.zeros(config.d_model, np.float32)
    begin = time.perf_counter()
    for _ in model.prefill_layers(encode(prompt), cache, ids[: config.pages_for(len(prompt))], tail):
        pass
    generated = model.generate(tail, len(prompt), cache, ids, tokens)
    said = [next(generated)]
    ttft_s = time.perf_counter() - begin
    said += generated
    return _Answer(ttft_s, said, cache[:, ids])
