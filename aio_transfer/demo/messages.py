"""Messages between the demo's decode and prefill processes, one JSON object per line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from aio_transfer.subprocesses.json_lines import Failed

if TYPE_CHECKING:
    from aio_transfer.demo.model import ModelConfig

__all__ = ("DEMO", "Done", "Message", "Offer", "Ready", "Request")


class Offer(msgspec.Struct, frozen=True, tag="offer"):
    """Decode to prefill: join in, and here are the pages you will write to.

    :param model: the fields of a :class:`~aio_transfer.demo.model.ModelConfig`
    :param pages: pages per layer in the decode side's cache
    :param cache: descriptor of that cache, with the counter to raise
    :param tail: descriptor of the tail context
    :param tokens: the longest prompt that will be asked for
    """

    rank: int
    ranks: int
    backend: str
    model: dict[str, int]
    pages: int
    cache: bytes
    tail: bytes
    tokens: int

    def config(self) -> ModelConfig:
        """Return the model's shape."""
        from aio_transfer.demo.model import ModelConfig

        return ModelConfig(**self.model)


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Prefill to decode: weights drawn, memory registered, connected."""


class Request(msgspec.Struct, frozen=True, tag="request"):
    """Decode to prefill: read this, and write layer by layer into these pages of mine."""

    prompt: bytes
    page_ids: list[int]


class Done(msgspec.Struct, frozen=True, tag="done"):
    """Prefill to decode: all my writes were acknowledged.

    :param busy_s: seconds during which at least one of them was under way
    :param path: what carried them, as ``transfer.path`` says
    """

    nbytes: int
    busy_s: float
    backend: str
    provider: str
    path: str


Message: TypeAlias = Offer | Ready | Request | Done | Failed
DEMO: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(Message)
"""What the demo's processes say."""
