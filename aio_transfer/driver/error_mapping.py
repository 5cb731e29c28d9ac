"""Error mapping: failures of drivers, and of other tasks, as the exceptions that callers see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aio_transfer.driver.records import Status
from aio_transfer.errors import AioTransferError, PeerLostError, ProviderError, StaleRegionError, TransferAbortedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("FailedOperation", "as_typed_error", "error_factory", "transfer_error")


def error_factory(error: AioTransferError) -> Callable[[], AioTransferError]:
    """Return a function that makes equal errors.

    One error object raised in many tasks would collect the traceback of each.
    """

    def make() -> AioTransferError:
        copy = type(error).__new__(type(error))
        copy.args = error.args
        copy.__dict__.update(error.__dict__)
        copy.__cause__ = error
        return copy

    return make


def as_typed_error(error: Exception, operation: str, peer: str = "") -> AioTransferError:
    """Return an :class:`AioTransferError` as it is, and any other exception as the cause of a :class:`ProviderError`.

    A driver may raise anything, and every wait ends with a typed error.

    :param operation: what was being done, such as ``"connect"``
    """
    if isinstance(error, AioTransferError):
        return error
    typed = ProviderError(operation, peer=peer, code_name=repr(error))
    typed.__cause__ = error
    return typed


class FailedOperation(NamedTuple):
    """The operation that an error is about.

    :ivar name: such as ``"write"``
    :ivar peer: the peer's label
    :ivar nbytes: its size
    """

    name: str
    peer: str
    nbytes: int


def transfer_error(status: int, code: int, text: str, failed: FailedOperation) -> Callable[[], AioTransferError]:
    """Return a function that makes the error for a transfer that a driver reported as failed.

    :param status: a :class:`Status` other than ``OK``
    :param code: the native error code
    :param text: the driver's explanation; may be empty
    """
    operation, peer, nbytes = failed
    match status:
        case Status.PEER_LOST:
            return lambda: PeerLostError(peer, text, operation=operation, nbytes=nbytes)
        case Status.STALE_REGION:
            return lambda: StaleRegionError("of the target", peer, text or "its owner has deregistered it")
        case Status.ABORTED:
            return lambda: TransferAbortedError(operation, text, peer=peer, nbytes=nbytes)
        case _:
            return lambda: ProviderError(operation, peer=peer, nbytes=nbytes, code=code, code_name=text)
