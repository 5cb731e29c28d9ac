"""Transport path: the backend, provider and NICs that carry bytes to a peer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("TransportPath",)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportPath:
    """The backend, provider and NICs that carry the bytes to a peer.

    :param rails: names of the NICs
    :param protocol: how a write is done, as text
    """

    backend: str
    provider: str
    rails: tuple[str, ...]
    protocol: str

    def __str__(self) -> str:
        """Return it on one line."""
        return f"{self.backend}/{self.provider} over {', '.join(self.rails)}: {self.protocol}"
