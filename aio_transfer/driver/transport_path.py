"""Transport path: the backend, provider and NICs that carry bytes to a peer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("TransportPath",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportPath:
    """What really carries the bytes to a peer.

    :param rails: the NICs, by name
    :param protocol: how a write is done, in words
    """

    backend: str
    provider: str
    rails: tuple[str, ...]
    protocol: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.backend}/{self.provider} over {', '.join(self.rails)}: {self.protocol}"
