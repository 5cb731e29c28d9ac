"""The demo's model: pages must not show in what it computes, and a wrong page must."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from aio_transfer.demo.model import VOCABULARY, Transformer, TransformerConfig, encode
from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SMALL = TransformerConfig(layers=3, heads=4, kv_heads=2, d_model=64, d_hidden=96, tokens_per_page=8, seed=7)
TEXT = b"What crosses the street is the memory of having read. " * 7
TOKENS = 24


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(SMALL)


class Run:
    """A prompt and what followed it, in pages of the given numbers."""

    def __init__(
        self, model: Transformer, ids: Sequence[int] | NDArray[np.int64], pages: int, text: bytes = TEXT
    ) -> None:
        config = model.config
        self.ids = np.asarray(ids)
        self.filled = config.pages_for(len(text))
        self.cache = np.full((config.layers, pages, config.page_nbytes), 0xFF, np.uint8)  # not a number anywhere
        self.tail = np.zeros(config.d_model, np.float32)
        self.layers = list(model.prefill_layers(encode(text), self.cache, self.ids[: self.filled], self.tail))
        self.prefilled = self.cache.copy()
        self.tokens = list(model.generate(self.tail, len(text), self.cache, self.ids, TOKENS))


def needed(config: TransformerConfig, text: bytes = TEXT) -> int:
    return config.pages_for(len(text) + TOKENS - 1)


def test_pages_anywhere_give_the_same_bits(model: Transformer) -> None:
    count = needed(SMALL)
    plain = Run(model, range(count), count)
    mixed = Run(model, np.random.default_rng(3).permutation(count + 9)[:count], count + 9)
    assert mixed.tokens == plain.tokens
    assert mixed.tail.tobytes() == plain.tail.tobytes()
    assert mixed.cache[:, mixed.ids].tobytes() == plain.cache.tobytes()


def test_other_pages_stay_untouched(model: Transformer) -> None:
    count = needed(SMALL)
    run = Run(model, range(2, 2 + count), count + 4)
    assert (run.cache[:, :2] == 0xFF).all()
    assert (run.cache[:, -2:] == 0xFF).all()


def test_yields_each_layer_when_its_pages_are_final(model: Transformer) -> None:
    filled = SMALL.pages_for(len(TEXT))
    cache = np.zeros((SMALL.layers, filled, SMALL.page_nbytes), np.uint8)
    tail = np.zeros(SMALL.d_model, np.float32)
    seen = []
    for layer in model.prefill_layers(encode(TEXT), cache, range(filled), tail):
        seen.append(cache[layer].tobytes())
        assert not cache[layer + 1 :].any()
        assert tail.any() == (layer == SMALL.layers - 1)
    assert seen == [layer.tobytes() for layer in cache]


@pytest.mark.parametrize("length", [1, 7, 8, 9, 16, 257, 300])
def test_paged_equals_reference_without_pages(model: Transformer, length: int) -> None:
    text = (TEXT * 2)[:length]
    run = Run(model, range(needed(SMALL, text)), needed(SMALL, text), text)
    history = list(text)
    state = run.tail
    for step, token in enumerate(run.tokens[:4]):
        expected = reference(model, np.array(history))[-1]
        np.testing.assert_allclose(state, expected, rtol=2e-3, atol=2e-3)
        assert token == model.choose(expected)
        state = model.decode_step(token, length + step, run.cache, run.ids[: SMALL.pages_for(length + step + 1)])
        history.append(token)


def reference(model: Transformer, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compute every token's state at once, in float64, with no cache, no blocks and no grouping."""
    config, count = model.config, len(tokens)
    state = model._embedding[tokens].astype(np.float64)
    half = config.head_dim // 2
    angles = np.arange(count)[:, None] * 10_000.0 ** (-2 * np.arange(half) / config.head_dim)
    turn = np.exp(1j * angles)[:, None]

    def rotate(x: NDArray[np.float64]) -> NDArray[np.float64]:
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return np.concatenate((turned.real, turned.imag), -1)

    def normalize(x: NDArray[np.float64]) -> NDArray[np.float64]:
        normal: NDArray[np.float64] = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return normal

    for block in model._blocks:
        queries = rotate((normalize(state) @ block.queries).reshape(count, config.heads, -1))
        keys, values = np.split((normalize(state) @ block.keys_values).reshape(count, 2 * config.kv_heads, -1), 2, 1)
        keys, values = (np.repeat(x, config.heads // config.kv_heads, 1) for x in (rotate(keys), values))
        scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(config.head_dim)
        scores = np.where(np.tri(count, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        state = state + np.einsum("hqk,khd->qhd", weights, values).reshape(count, -1) @ block.out
        up, gate = np.split(normalize(state) @ block.up_gate, 2, -1)
        state = state + (up * gate / (1 + np.exp(-gate))) @ block.down
    return state.astype(np.float32)


@pytest.mark.parametrize("layer", range(SMALL.layers))
@pytest.mark.parametrize("page", [0, 20, -1])
def test_a_wrong_page_shows_in_what_follows(model: Transformer, layer: int, page: int) -> None:
    run = Run(model, range(needed(SMALL)), needed(SMALL))
    damaged = run.prefilled.copy()
    damaged[layer, run.ids[: run.filled][page]] = 0
    state = model.decode_step(65, len(TEXT), run.prefilled, run.ids[: SMALL.pages_for(len(TEXT) + 1)])
    other = model.decode_step(65, len(TEXT), damaged, run.ids[: SMALL.pages_for(len(TEXT) + 1)])
    assert state.tobytes() != other.tobytes()


def test_says_more_than_one_thing_and_only_what_prints(model: Transformer) -> None:
    run = Run(model, range(needed(SMALL)), needed(SMALL))
    assert bytes(run.tokens).decode("ascii").isprintable()
    assert len(set(run.tokens)) > TOKENS // 3
    other = Run(model, range(needed(SMALL)), needed(SMALL), b"X" + TEXT[1:])
    assert other.tokens != run.tokens, "the first byte of the prompt must matter"


def test_another_process_computes_the_same_bits(model: Transformer) -> None:
    code = (
        "import sys, numpy as np\n"
        "from aio_transfer.demo.model import Transformer, TransformerConfig, encode\n"
        f"config, text = {SMALL!r}, {TEXT!r}\n"
        "pages = config.pages_for(len(text))\n"
        "cache = np.zeros((config.layers, pages, config.page_nbytes), np.uint8)\n"
        "tail = np.zeros(config.d_model, np.float32)\n"
        "list(Transformer(config).prefill_layers(encode(text), cache, range(pages), tail))\n"
        "sys.stdout.buffer.write(tail.tobytes() + cache.tobytes())\n"
    )
    there = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE).stdout
    filled = SMALL.pages_for(len(TEXT))
    run = Run(model, range(needed(SMALL)), needed(SMALL))
    here = run.tail.tobytes() + np.ascontiguousarray(run.prefilled[:, :filled]).tobytes()
    assert hashlib.sha256(there).hexdigest() == hashlib.sha256(here).hexdigest()


def test_shards_cover_each_page_once_and_are_whole_heads() -> None:
    for ranks in (1, 2):
        shards = [SMALL.shard(rank, ranks) for rank in range(ranks)]
        covered = [range(s.offset_nbytes, s.offset_nbytes + s.nbytes) for s in shards]
        assert [i for part in covered for i in part] == list(range(SMALL.page_nbytes))
        assert all(s.nbytes % (SMALL.page_nbytes // SMALL.kv_heads) == 0 for s in shards)


@pytest.mark.parametrize(("rank", "ranks"), [(0, 3), (0, 4), (2, 2), (-1, 2), (0, 0)])
def test_ranks_that_do_not_fit_are_refused(rank: int, ranks: int) -> None:
    with pytest.raises((UsageError, ZeroDivisionError)) as caught:
        SMALL.shard(rank, ranks)
    assert caught.type is UsageError


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"heads": 3}, {"kv_heads": 3}, {"d_model": 72, "heads": 8}, {"tokens_per_page": -1}]
)
def test_shapes_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        TransformerConfig(**wrong)


def test_wrong_memory_is_refused(model: Transformer) -> None:
    cache = np.zeros((SMALL.layers, 4, SMALL.page_nbytes), np.uint8)
    tail = np.zeros(SMALL.d_model, np.float32)
    for tokens, memory, ids, end in (
        ([], cache, [], tail),
        ([1] * 9, cache, [0], tail),
        ([1], cache, [0, 1], tail),
        ([1], cache[:2], [0], tail),
        ([1], cache.view(np.int8), [0], tail),
        ([1], cache, [0], tail[:-1]),
        ([VOCABULARY], cache, [0], tail),
        ([-1], cache, [0], tail),
        ([1], cache, [4], tail),
        ([1], cache, [-1], tail),
    ):
        with pytest.raises(UsageError):
            list(model.prefill_layers(tokens, memory, ids, end))  # type: ignore[arg-type]
    assert not cache.any()
