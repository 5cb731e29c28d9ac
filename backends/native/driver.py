"""Native driver: the driver protocol on top of the C++ core, for every native transport."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, cast

from aio_transfer.backends.native._native import NativeCore
from aio_transfer.driver.options import as_text
from aio_transfer.driver.protocol import Capabilities, Endpoint, LocalMemory
from aio_transfer.errors import ClosedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from aio_transfer.driver.protocol import RemoteMemory
    from aio_transfer.driver.records import CounterId, PeerNumber, RegionNumber, TransferId

__all__ = ("NativeDriver",)

_LENGTH = struct.Struct("<HB")


class NativeDriver:
    """One transport of the C++ core as a driver; also a :class:`SpinningDriver` and a :class:`PreparedDriver`.

    Keys and endpoints of several rails are packed into one blob: per rail its length, how many file descriptors belong
    to it, and its bytes.
    """

    def __init__(self, backend: str, options: Mapping[str, object] | None = None) -> None:
        """Remember what to open; nothing is acquired yet.

        :param options: checked values, from the option table of the backend
        """
        self._backend = backend
        self._options = {name: as_text(value) for name, value in (options or {}).items()}
        self._core = self._closed = cast("NativeCore", _ClosedCore(f"the {backend} driver"))

    def open(self) -> Capabilities:
        """Open the devices and start the worker."""
        self._core = self._open_core()
        return Capabilities(backend=self._backend, **self._core.attributes())

    def _open_core(self) -> NativeCore:
        return NativeCore(self._backend, self._options)

    def register(self, region: RegionNumber, memory: LocalMemory | RemoteMemory) -> bytes:
        """Register on every rail; return the keys of all rails."""
        if isinstance(memory, LocalMemory):
            keys = self._core.register_local(
                region,
                memory.addr,
                memory.nbytes,
                memory.access.value,
                fd=-1 if memory.fd is None else memory.fd,
                fd_offset=memory.fd_offset,
                is_dmabuf=memory.is_dmabuf,
                cuda_device=-1 if memory.cuda_device is None else memory.cuda_device,
            )
            return _pack((key, ()) for key in keys)
        parts = [key for key, _ in _unpack(memory.keys, ())]
        self._core.register_remote(region, memory.peer, memory.nbytes, parts, list(memory.fds))
        return b""

    def deregister(self, region: RegionNumber) -> None:
        """Deregister on every rail; one RELEASED event follows for our own memory."""
        self._core.deregister(region)

    def connect(self, peer: PeerNumber, remote: Endpoint | None) -> Endpoint:
        """Create or connect our ends, one per rail."""
        far = None if remote is None else _unpack(remote.blob, remote.fds)
        ends = self._core.connect(peer, None if far is None else [(blob, list(fds)) for blob, fds in far])
        return Endpoint(blob=_pack(ends), fds=tuple(fd for _, fds in ends for fd in fds))

    def disconnect(self, peer: PeerNumber, *, lost: bool) -> None:
        """End the connection on every rail; one FENCED event follows."""
        self._core.disconnect(peer, lost)

    def post(self, transfer: TransferId, runs: NDArray[np.void] | bytes, pieces: NDArray[np.void] | bytes) -> bool:
        """Copy the records and start them."""
        return self._core.post(transfer, runs, pieces)

    def post_each(
        self, first: TransferId, runs: NDArray[np.void] | bytes, pieces: NDArray[np.void] | bytes
    ) -> list[int]:
        """Start one transfer per run; return the indices of those that have not completed."""
        return self._core.post_each(first, runs, pieces)

    def send(self, peer: PeerNumber, message: TransferId, payload: bytes) -> None:
        """Queue one message."""
        self._core.send(peer, message, payload)

    def expect(self, counter: CounterId, counts: int) -> int:
        """Arm, disarm, read or delete a counter."""
        return self._core.expect(counter, counts)

    def spin_wait(self, counter: CounterId, counts: int) -> int:
        """Busy-poll a counter for up to 100 µs or until it reaches ``counts``; return its total."""
        return self._core.spin_wait(counter, counts)

    def fileno(self) -> int:
        """Return the eventfd of the completion ring."""
        return self._core.fileno()

    def drain(self, limit: int) -> Sequence[tuple[int, int, int, int, bytes]]:
        """Take events; when the ring is found empty, the next event makes ``fileno`` readable."""
        return self._core.drain(limit)

    def statistics(self) -> Mapping[str, int]:
        """Return the core's running totals."""
        return self._core.statistics()

    def close(self) -> None:
        """Stop the worker and free every device."""
        if self._core is not self._closed:
            self._core.close()
            self._core = self._closed


class _ClosedCore:
    """Placeholder for the core before open and after close; it raises, so that no call has to test for that."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __getattr__(self, name: str) -> object:
        raise ClosedError(self._what)


def _pack(parts: Iterable[tuple[bytes, Sequence[int]]]) -> bytes:
    return b"".join(_LENGTH.pack(len(blob), len(fds)) + blob for blob, fds in parts)


def _unpack(packed: bytes, fds: Sequence[int]) -> list[tuple[bytes, Sequence[int]]]:
    """Split a peer's blob by rail; nothing in it is trusted."""
    parts: list[tuple[bytes, Sequence[int]]] = []
    at = taken = 0
    while at < len(packed):
        if len(packed) - at < _LENGTH.size:
            raise UsageError("a peer's keys end in the middle of a rail")
        nbytes, nfds = _LENGTH.unpack_from(packed, at)
        at += _LENGTH.size
        blob = packed[at : at + nbytes]
        at += nbytes
        if len(blob) != nbytes or (fds and taken + nfds > len(fds)):
            raise UsageError("a peer's keys end in the middle of a rail")
        parts.append((blob, fds[taken : taken + nfds]))
        taken += nfds
    if not parts:
        raise UsageError("a peer's keys name no rail")
    return parts
