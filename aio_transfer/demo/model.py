"""Small decoder-only transformer on byte tokens, in NumPy, whose KV cache lives in pages that the caller owns.

It takes the place of a real model: the weights are random but seeded, so every process with the same
:class:`TransformerConfig` computes the same numbers, and one wrong byte in one page changes the tokens. It has RMSNorm,
rotary positions, grouped-query attention and SwiGLU, as current models do.

A page holds keys and values of ``tokens_per_page`` tokens of one layer, heads first: ``(kv_heads, 2, tokens_per_page,
head_dim)``. A range of heads is therefore one contiguous part of every page: what a tensor-parallel rank sends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ("BLAS_THREADS", "VOCABULARY", "Shard", "Transformer", "TransformerConfig", "encode")

Floats: TypeAlias = "NDArray[np.float32]"
Ids: TypeAlias = "NDArray[np.int64]"

VOCABULARY: Final = 256
PRINTABLE: Final = slice(32, 127)
"""Bytes that can be generated, so that the output can be shown on any terminal."""
QUERY_BLOCK: Final = 256
"""Rows of attention computed at once: keys after the block are skipped, which halves the work."""
BLAS_THREADS: Final = 1
"""For :func:`~aio_transfer.demo.blas.blas_threads`: the same in every process that must compute the same bits."""
SHARPNESS: Final = 4.0
"""Spread of the attention scores. Random weights give 1, where the average over thousands of tokens is almost zero and
the output repeats itself; with 4, a few tokens of the context dominate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Part of every page that one prefill rank sends: ``nbytes`` from ``offset_nbytes`` within the page."""

    offset_nbytes: int
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of a model, and the seed of its weights.

    :param heads: query heads; they divide ``d_model``
    :param kv_heads: key and value heads; they divide ``heads``
    :param tokens_per_page: tokens whose keys and values share a page
    """

    layers: int = 8
    heads: int = 8
    kv_heads: int = 4
    d_model: int = 256
    d_hidden: int = 512
    tokens_per_page: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that the sizes fit together.

        :raises UsageError: a size is not positive, or one does not divide another
        """
        for name in ("layers", "heads", "kv_heads", "d_model", "d_hidden", "tokens_per_page"):
            if getattr(self, name) < 1:
                message = f"a model needs {name} of at least 1, not {getattr(self, name)}"
                raise UsageError(message)
        if self.d_model % (2 * self.heads) or self.heads % self.kv_heads:
            message = (
                f"{self.heads} heads of {self.kv_heads} kv_heads do not divide d_model {self.d_model} into even parts"
            )
            raise UsageError(message)

    @property
    def head_dim(self) -> int:
        """Numbers per head."""
        return self.d_model // self.heads

    @property
    def page_nbytes(self) -> int:
        """Bytes of one page: keys and values of one layer, in float32."""
        return 2 * self.kv_heads * self.tokens_per_page * self.head_dim * 4

    def pages_for(self, tokens: int) -> int:
        """Return how many pages of each layer hold ``tokens`` tokens."""
        return -(-tokens // self.tokens_per_page)

    def shard(self, rank: int, ranks: int) -> Shard:
        """Return the part of each page that rank ``rank`` of ``ranks`` sends: its heads under tensor parallelism.

        :raises UsageError: ``ranks`` does not divide the kv heads, or there is no such rank
        """
        if not 0 <= rank < ranks or self.kv_heads % ranks:
            message = f"rank {rank} of {ranks}: the ranks must divide {self.kv_heads} kv_heads evenly"
            raise UsageError(message)
        nbytes = self.page_nbytes // ranks
        return Shard(offset_nbytes=rank * nbytes, nbytes=nbytes)


def encode(text: bytes) -> Ids:
    """Turn bytes into tokens, one each."""
    return np.frombuffer(text, np.uint8).astype(np.int64)


def _require_tokens(tokens: Ids) -> None:
    if not tokens.size or not 0 <= tokens.min() <= tokens.max() < VOCABULARY:
        message = f"{tokens.size} tokens: at least one is needed, and each must be a byte"
        raise UsageError(message)


class _Block:
    """The weights of one layer."""

    __slots__ = ("down", "keys_values", "out", "queries", "up_gate")

    def __init__(self, config: TransformerConfig, random: np.random.Generator) -> None:
        wide, narrow, hidden = config.d_model, config.kv_heads * config.head_dim, config.d_hidden
        self.queries = _matrix(random, wide, wide, gain=SHARPNESS)
        self.keys_values = _matrix(random, wide, 2 * narrow)
        self.out = _matrix(random, wide, wide, gain=2.0)
        self.up_gate = _matrix(random, wide, 2 * hidden)
        self.down = _matrix(random, hidden, wide, gain=2.0)


class Transformer:
    """Transformer with its weights. The only other state, the KV cache, is in the caller's pages.

    The same input and the same steps give the same bits, in any pages and in any process, with the same NumPy and the
    same number of BLAS threads on the same machine. OpenBLAS splits long matrices by thread, and another split rounds
    differently (measured with 3,000 tokens on 1 and 2 threads).
    """

    def __init__(self, config: TransformerConfig) -> None:
        """Draw the weights, in float32: 17 MB and 0.1 s with the defaults."""
        random = np.random.Generator(np.random.PCG64(config.seed))
        self.config = config
        self._embedding = _matrix(random, 1, VOCABULARY * config.d_model).reshape(VOCABULARY, config.d_model)
        self._blocks = tuple(_Block(config, random) for _ in range(config.layers))
        self._head = _matrix(random, config.d_model, VOCABULARY)
        half = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
        self._frequencies = 10_000.0**-half

    def prefill_layers(
        self, tokens: ArrayLike, cache: NDArray[np.uint8], page_ids: ArrayLike, tail: Floats
    ) -> Iterator[int]:
        """Process a whole prompt, layer by layer; yields a layer's number once its pages are complete.

        Its pages may be sent at once: they do not change again. ``tail`` is complete together with the last layer; it
        saves the decode side from running the last token again.

        :param tokens: the prompt, 0 … 255 each, at least one
        :param cache: pages, ``(layers, pages, page_nbytes)`` of bytes
        :param page_ids: which pages of each layer to fill, in the order of the text; as many as the prompt needs
        :param tail: ``d_model`` numbers: the last token's state after all layers
        :raises UsageError: no tokens, or not enough pages, or memory of another shape
        """
        prompt = np.asarray(tokens, np.int64)
        pages = self._pages(cache)
        ids = self._ids(page_ids, prompt.size, cache.shape[1])
        _require_tokens(prompt)
        if tail.shape != (self.config.d_model,):
            message = f"a tail of shape {tail.shape} does not hold {self.config.d_model} numbers"
            raise UsageError(message)
        rotations = self._rotations(np.arange(prompt.size))
        state = self._embedding[prompt]
        for layer, block in enumerate(self._blocks):
            queries, keys, values = self._project(block, state, rotations)
            self._store(pages[layer], ids, keys, values)
            state = _feed_forward(block, state, _attend_causally(queries, keys, values))
            if layer == self.config.layers - 1:
                tail[:] = state[-1]
            yield layer

    def decode_step(self, token: int, position: int, cache: NDArray[np.uint8], page_ids: ArrayLike) -> Floats:
        """Process one more token, add it to its page, and return its state after all layers, like ``tail``.

        :param position: number of tokens before it
        :param page_ids: the pages of each layer in the order of the text, those of the prompt first
        :raises UsageError: not enough pages, or a cache of another shape
        """
        pages = self._pages(cache)
        ids = self._ids(page_ids, position + 1, cache.shape[1])
        _require_tokens(np.array([token]))
        rotations = self._rotations(np.array([position]))
        state: Floats = self._embedding[[token]]
        slot = position % self.config.tokens_per_page
        for layer, block in enumerate(self._blocks):
            queries, keys, values = self._project(block, state, rotations)
            last = pages[layer, ids[-1]]
            last[:, 0, slot], last[:, 1, slot] = keys[:, 0], values[:, 0]
            keys, values = self._load(pages[layer], ids, position + 1)
            state = _feed_forward(block, state, _attend(queries, keys, values))
        last_state: Floats = state[0]
        return last_state

    def choose(self, tail: Floats) -> int:
        """Return the most likely next token after a state: greedy, the smaller one of two that are equal."""
        logits = _normalize(tail[None]) @ self._head
        return PRINTABLE.start + int(np.argmax(logits[0, PRINTABLE]))

    def generate(
        self, tail: Floats, position: int, cache: NDArray[np.uint8], page_ids: ArrayLike, count: int
    ) -> Iterator[int]:
        """Yield ``count`` (≥ 1) tokens that follow a prompt already in the pages; the first one runs no layer.

        :param tail: as :meth:`prefill_layers` left it
        :param position: length of the prompt in tokens
        :param page_ids: pages for ``position + count - 1`` tokens, those of the prompt first
        """
        ids = np.asarray(page_ids, np.int64)
        yield (token := self.choose(tail))
        for at in range(position, position + count - 1):
            tail = self.decode_step(token, at, cache, ids[: self.config.pages_for(at + 1)])
            yield (token := self.choose(tail))

    def _pages(self, cache: NDArray[np.uint8]) -> Floats:
        """View the cache as numbers; nothing is copied."""
        config = self.config
        if cache.dtype != np.uint8 or cache.shape != (config.layers, *cache.shape[1:2], config.page_nbytes):
            wanted = f"({config.layers}, pages, {config.page_nbytes}) bytes"
            message = f"a cache of {cache.dtype} {cache.shape} is not {wanted}"
            raise UsageError(message)
        shape = (config.layers, cache.shape[1], config.kv_heads, 2, config.tokens_per_page, config.head_dim)
        return cache.view(np.float32).reshape(shape)

    def _ids(self, page_ids: ArrayLike, tokens: int, pages: int) -> Ids:
        ids = np.asarray(page_ids, np.int64)
        if ids.shape != (self.config.pages_for(tokens),):
            message = f"{tokens} tokens take {self.config.pages_for(tokens)} pages of each layer, not {ids.shape}"
            raise UsageError(message)
        if ids.size and not 0 <= ids.min() <= ids.max() < pages:
            message = f"page ids {ids.min()} … {ids.max()} are not all within 0 … {pages - 1}"
            raise UsageError(message)
        return ids

    def _rotations(self, positions: Ids) -> tuple[Floats, Floats]:
        """Return cosine and sine of each position's rotary angles, ``(tokens, head_dim / 2)``."""
        angles = positions[:, None] * self._frequencies
        return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def _project(self, block: _Block, state: Floats, rotations: tuple[Floats, Floats]) -> tuple[Floats, Floats, Floats]:
        """Return queries ``(kv_heads, heads / kv_heads, tokens, head_dim)``; keys, values ``(kv_heads, tokens, …)``."""
        config, count = self.config, len(state)
        normal = _normalize(state)
        queries = (normal @ block.queries).reshape(count, config.kv_heads, -1, config.head_dim).transpose(1, 2, 0, 3)
        both = (normal @ block.keys_values).reshape(count, 2, config.kv_heads, config.head_dim).transpose(1, 2, 0, 3)
        return _rotate(queries, rotations), _rotate(both[0], rotations), np.ascontiguousarray(both[1])

    def _store(self, pages: Floats, ids: Ids, keys: Floats, values: Floats) -> None:
        """Store one layer's keys and values in its pages; the end of the last page is filled with zeros."""
        config, count = self.config, keys.shape[1]
        padded = np.zeros((config.kv_heads, 2, len(ids) * config.tokens_per_page, config.head_dim), np.float32)
        padded[:, 0, :count], padded[:, 1, :count] = keys, values
        shape = (config.kv_heads, 2, len(ids), config.tokens_per_page, config.head_dim)
        pages[ids] = padded.reshape(shape).transpose(2, 0, 1, 3, 4)

    def _load(self, pages: Floats, ids: Ids, count: int) -> tuple[Floats, Floats]:
        """Gather ``count`` tokens of one layer from its pages, in the layout of :meth:`_project`."""
        config = self.config
        gathered = pages[ids].transpose(1, 2, 0, 3, 4).reshape(config.kv_heads, 2, -1, config.head_dim)
        return gathered[:, 0, :count], gathered[:, 1, :count]


def _matrix(random: np.random.Generator, rows: int, columns: int, *, gain: float = 1.0) -> Floats:
    """Draw a matrix that scales the norm of a vector by about ``gain``."""
    drawn = random.standard_normal((rows, columns), np.float32)
    return np.multiply(drawn, np.float32(gain / rows**0.5), out=drawn)


def _normalize(state: Floats) -> Floats:
    """Scale each row to a root mean square of 1."""
    scale = np.sqrt(np.mean(np.square(state), axis=-1, keepdims=True) + np.float32(1e-6))
    normal: Floats = state / scale
    return normal


def _rotate(vectors: Floats, rotations: tuple[Floats, Floats]) -> Floats:
    """Rotate each pair (first half, second half) by its position's angle."""
    cosine, sine = rotations
    half = vectors.shape[-1] // 2
    first, second = vectors[..., :half], vectors[..., half:]
    return np.concatenate((first * cosine - second * sine, first * sine + second * cosine), axis=-1)


def _attend(queries: Floats, keys: Floats, values: Floats, mask: Floats | None = None) -> Floats:
    """Return each query's mean of ``values``, weighted by how well it matches ``keys``; shaped like ``queries``."""
    heads, group, count, width = queries.shape
    scores = queries.reshape(heads, group * count, width) @ keys.transpose(0, 2, 1)
    scores *= np.float32(width**-0.5)
    if mask is not None:
        scores.reshape(heads, group, count, -1)[..., -count:] += mask
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    mean: Floats = (scores @ values) / total
    return mean.reshape(queries.shape)


def _attend_causally(queries: Floats, keys: Floats, values: Floats) -> Floats:
    """Attend from every token to itself and to the tokens before it."""
    out = np.empty_like(queries)
    for begin in range(0, queries.shape[2], QUERY_BLOCK):
        block = queries[:, :, begin : begin + QUERY_BLOCK]
        end = begin + block.shape[2]
        future = np.triu(np.full((end - begin, end - begin), -np.inf, np.float32), 1)
        out[:, :, begin:end] = _attend(block, keys[:, :end], values[:, :end], future)
    return out


def _feed_forward(block: _Block, state: Floats, attended: Floats) -> Floats:
    """Add the attention output and then the feed-forward output to the state."""
    merged = attended.transpose(2, 0, 1, 3).reshape(len(state), -1)
    state = state + merged @ block.out
    up, gate = np.split(_normalize(state) @ block.up_gate, 2, axis=-1)
    mixed: Floats = state + (up * (gate / (1 + np.exp(-gate)))) @ block.down
    return mixed
