"""Identity and address of one engine, as sent in descriptors and handshakes."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from aio_transfer.topology.identity import HOST_IDENTITY_NBYTES, INCARNATION_NBYTES

__all__ = ("Incarnation", "Number32", "PeerInfo", "Word")

# Printable ASCII only: these end up in log lines and error messages.
Word: TypeAlias = Annotated[str, Meta(max_length=128, pattern=r"^[ -~]*\Z")]
Incarnation: TypeAlias = Annotated[bytes, Meta(min_length=INCARNATION_NBYTES, max_length=INCARNATION_NBYTES)]
Number32: TypeAlias = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
_HostName: TypeAlias = Annotated[str, Meta(max_length=255, pattern=r"^[ -~]*\Z")]


class PeerInfo(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Identity of an engine, and the addresses it can be dialed at.

    :param host: :func:`~aio_transfer.topology.identity.host_identity`
    :param label: name in logs and messages, by default ``"host:pid"``
    :param tcp_host: the address to dial, which may differ from the one bound
    :param unix: name in the abstract AF_UNIX namespace without the leading NUL, or empty
    :param backends: backend name → provider
    """

    incarnation: Incarnation
    host: Annotated[bytes, Meta(min_length=HOST_IDENTITY_NBYTES, max_length=HOST_IDENTITY_NBYTES)]
    label: Word
    pid: Number32
    tcp_host: _HostName
    tcp_port: Annotated[int, Meta(ge=0, le=0xFFFF)]
    unix: Annotated[str, Meta(max_length=107, pattern=r"^[ -~]*\Z")] = ""
    backends: Annotated[dict[Word, Word], Meta(max_length=16)] = {}
