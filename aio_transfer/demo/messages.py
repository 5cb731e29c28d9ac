"""Messages between the demo's decode and prefill processes, one JSON object per line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from aio_transfer.subprocesses.json_lines import Failed

if TYPE_CHECKING:
    from aio_transfer.demo.model import TransformerConfig

__all__ = ("DEMO_MESSAGES", "CacheOffer", "DemoMessage", "PrefillReady", "PrefillRequest", "PrefillResult")


class CacheOffer(msgspec.Struct, frozen=True, tag="offer"):
    """Decode to prefill: the model to load and the remote memory to write to.

    :param model: the fields of a :class:`~aio_transfer.demo.model.TransformerConfig`
    :param pages: pages per layer in the decode side's cache
    :param cache: descriptor of that cache, with the counter to raise
    :param tail: descriptor of the buffer for the last token's state
    :param max_tokens: length of the longest prompt
    """

    rank: int
    ranks: int
    backend: str
    model: dict[str, int]
    pages: int
    cache: bytes
    tail: bytes
    max_tokens: int

    def config(self) -> TransformerConfig:
        """Return the model's configuration."""
        from aio_transfer.demo.model import TransformerConfig

        return TransformerConfig(**self.model)


class PrefillReady(msgspec.Struct, frozen=True, tag="ready"):
    """Prefill to decode: the weights are drawn, memory is registered, the engines are connected."""


class PrefillRequest(msgspec.Struct, frozen=True, tag="request"):
    """Decode to prefill: process this prompt, and write each layer into these pages of the cache."""

    prompt: bytes
    page_ids: list[int]


class PrefillResult(msgspec.Struct, frozen=True, tag="result"):
    """Prefill to decode: all writes were acknowledged.

    :param busy_s: seconds during which at least one write was in flight
    :param path: transport of the writes, as ``str(transfer.path)``
    """

    nbytes: int
    busy_s: float
    backend: str
    provider: str
    path: str


DemoMessage: TypeAlias = CacheOffer | PrefillReady | PrefillRequest | PrefillResult | Failed
DEMO_MESSAGES: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(DemoMessage)
"""Decoder of all messages of the demo."""
