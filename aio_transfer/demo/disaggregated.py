"""Disaggregated prefill and decode: prefill processes fill the KV pages of a decode process over the engine.

This process is the decode side and owns the pages. Prefill processes write each layer into them as soon as it is
computed; decode begins when its counter has reached the expected value. Afterwards the same text goes through the same
model in this process alone: tokens and pages must be the same bits.
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
from aio_transfer.demo.messages import DEMO_MESSAGES, CacheOffer, PrefillReady, PrefillRequest, PrefillResult
from aio_transfer.demo.model import BLAS_THREADS, Transformer, TransformerConfig, encode
from aio_transfer.subprocesses.child import Child

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from aio_transfer import ImmCounter, Region

__all__ = ("DemoOptions", "DemoReport", "run_demo")

MAX_PROMPT_NBYTES: Final = 8192
"""Attention costs grow with its square: 8 KiB take about 6 s on one core."""
EXPLANATION_S: Final = 1.0
"""Wait for a lost peer's exit status and standard error, which arrive through its pipe and explain more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoOptions:
    """Options of the demo.

    :param input: text file, of which at most :data:`MAX_PROMPT_NBYTES` are used; ``None`` for the included text
    :param backend: as for ``TransferEngine``
    :param prefills: prefill processes: 1, 2 or 4; each sends its heads' part of every page
    :param tokens: number of tokens to generate
    """

    input: Path | None = None
    backend: str = "auto"
    layers: int = 8
    prefills: int = 1
    tokens: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """Result of one run.

    :param path: transport of the pages, as text
    :param pages: of the prompt, in all layers
    :param counts: counts that the decode side waited for: one per page and prefill process, one for the tail
    :param gb_per_s: 10**9 bytes per second, over the time in which writes were in flight
    :param ttft_s: time to first token, from the request, with prefill in other processes and the transfer
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
    """Run the disaggregated and the single-process version, and compare them.

    :param on_arrival: called about once per layer with the counts that have arrived and all that will
    :raises UsageError: an option is out of range, or the input is empty
    :raises BackendUnavailableError: the backend asked for cannot run here
    :raises ChildFailedError: a prefill process exited or reported an error
    :raises OSError: the input cannot be read
    :cancellation: every child is killed
    """
    name, text = _read(options)
    prompt = text[:MAX_PROMPT_NBYTES]
    if options.tokens < 1:
        message = f"{options.tokens} tokens cannot be generated"
        raise UsageError(message)
    model = Transformer(TransformerConfig(layers=options.layers, seed=options.seed))
    model.config.shard(0, options.prefills)  # raises UsageError before any process is started
    decode = _Decode(model, prompt, options)
    with blas_threads(BLAS_THREADS):
        answer, results = await decode.run(on_arrival)
        alone = await anyio.to_thread.run_sync(_answer_alone, model, prompt, decode.ids, options.tokens)
    return decode.report(name, len(text), answer, alone, results)


def _read(options: DemoOptions) -> tuple[str, bytes]:
    """Return the input's name and bytes."""
    if options.input is None:
        name, text = "the included text", resources.files("aio_transfer.demo").joinpath("prompt.txt").read_bytes()
    else:
        name, text = str(options.input), options.input.read_bytes()
    if not text:
        message = f"{name} is empty"
        raise UsageError(message)
    return name, text


class _Decode:
    """Decode side: owns the pages, requests the prefill of a prompt, and generates tokens."""

    def __init__(self, model: Transformer, prompt: bytes, options: DemoOptions) -> None:
        config = model.config
        self._model = model
        self._prompt = prompt
        self._options = options
        self.filled = config.pages_for(len(prompt))
        needed = config.pages_for(len(prompt) + options.tokens - 1)
        # As in a server that has run for a while, the free pages are scattered over a larger pool.
        self._pool = needed + needed // 4 + 1
        self.ids: NDArray[np.int64] = np.random.default_rng(options.seed).permutation(self._pool)[:needed]
        self.counts = config.layers * self.filled * options.prefills + 1

    async def run(self, on_arrival: Callable[[int, int], None]) -> tuple[_Answer, list[PrefillResult]]:
        """Start the prefill processes, request the prompt, and generate tokens."""
        config = self._model.config
        async with TransferEngine(backend=self._options.backend) as engine, AsyncExitStack() as children:
            cache: NDArray[np.uint8] = engine.allocate((config.layers, self._pool, config.page_nbytes), "u1")
            cache[:] = 0  # as in a server that has run for long, so that no request pays for page faults
            tail: NDArray[np.float32] = engine.allocate((config.d_model,), "f4")
            regions = await engine.register(cache), await engine.register(tail)
            counter = engine.counter()
            ranks = range(self._options.prefills)
            # Started concurrently: each takes a second to import NumPy and to draw its weights.
            prefills = [await children.enter_async_context(_prefill_process(rank)) for rank in ranks]
            for rank, child in zip(ranks, prefills, strict=True):
                child.send(self._offer(rank, *regions, counter))
            for child in prefills:
                await child.receive(PrefillReady)
            return await self._answer(prefills, cache, tail, counter, on_arrival)

    def _offer(self, rank: int, cache: Region, tail: Region, counter: ImmCounter) -> CacheOffer:
        return CacheOffer(
            rank=rank,
            ranks=self._options.prefills,
            backend=self._options.backend,
            model=dataclasses.asdict(self._model.config),
            pages=self._pool,
            cache=bytes(cache.descriptor(counter=counter)),
            tail=bytes(tail.descriptor()),
            max_tokens=len(self._prompt),
        )

    async def _answer(
        self,
        prefills: list[Child],
        cache: NDArray[np.uint8],
        tail: NDArray[np.float32],
        counter: ImmCounter,
        on_arrival: Callable[[int, int], None],
    ) -> tuple[_Answer, list[PrefillResult]]:
        results: list[PrefillResult] = []

        async def collect(child: Child) -> None:
            results.append(await child.receive(PrefillResult))

        try:
            async with anyio.create_task_group() as group:
                begin = time.perf_counter()
                for child in prefills:
                    child.send(PrefillRequest(self._prompt, self.ids[: self.filled].tolist()))
                    group.start_soon(collect, child)
                await self._await_counts(counter, on_arrival)
                generated = self._model.generate(tail, len(self._prompt), cache, self.ids, self._options.tokens)
                tokens = [next(generated)]
                ttft_s = time.perf_counter() - begin
                tokens += await anyio.to_thread.run_sync(list, generated)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return _Answer(ttft_s, tokens, cache[:, self.ids]), results

    def report(
        self, input_name: str, input_nbytes: int, answer: _Answer, alone: _Answer, results: list[PrefillResult]
    ) -> DemoReport:
        """Compare both answers, and sum up the transfers."""
        nbytes = sum(result.nbytes for result in results)
        tokens_match = answer.tokens == alone.tokens
        pages_match = bool(np.array_equal(answer.pages, alone.pages))
        return DemoReport(
            match=tokens_match and pages_match,
            tokens_match=tokens_match,
            pages_match=pages_match,
            backend=results[0].backend,
            provider=results[0].provider,
            path=results[0].path,
            input=input_name,
            input_nbytes=input_nbytes,
            prompt_nbytes=len(self._prompt),
            layers=self._options.layers,
            prefills=self._options.prefills,
            seed=self._options.seed,
            pages=self._options.layers * self.filled,
            page_nbytes=self._model.config.page_nbytes,
            counts=self.counts,
            nbytes=nbytes,
            gb_per_s=nbytes / max(result.busy_s for result in results) / 1e9,
            ttft_s=answer.ttft_s,
            ttft_alone_s=alone.ttft_s,
            tokens=answer.tokens,
            text=bytes(answer.tokens).decode("ascii"),
        )

    async def _await_counts(self, counter: ImmCounter, on_arrival: Callable[[int, int], None]) -> None:
        """Wait for all counts, one layer's number at a time; they may come from any layers."""
        try:
            for _ in range(self._options.layers):
                await counter.wait(self.filled * self._options.prefills)
                on_arrival(counter.value, self.counts)
            await counter.wait(1)
            on_arrival(counter.value, self.counts)
        except PeerLostError:
            # collect() is about to fail with the exit status and standard error, and to cancel this sleep.
            await anyio.sleep(EXPLANATION_S)
            raise


def _prefill_process(rank: int) -> Child:
    return Child("aio_transfer.demo.prefill", f"prefill process {rank}", DEMO_MESSAGES)


def _answer_alone(model: Transformer, prompt: bytes, ids: NDArray[np.int64], tokens: int) -> _Answer:
    """Prefill and decode in this process alone, with separate pages."""
    config = model.config
    cache = np.full((config.layers, int(ids.max()) + 1, config.page_nbytes), 0, np.uint8)  # no page faults, as above
    tail = np.zeros(config.d_model, np.float32)
    begin = time.perf_counter()
    for _ in model.prefill_layers(encode(prompt), cache, ids[: config.pages_for(len(prompt))], tail):
        pass
    generated = model.generate(tail, len(prompt), cache, ids, tokens)
    answer = [next(generated)]
    ttft_s = time.perf_counter() - begin
    answer += generated
    return _Answer(ttft_s, answer, cache[:, ids])
