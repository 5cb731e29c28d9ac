"""How a failure below the seam, or in another task, becomes the error a caller sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aio_transfer.driver.records import Status
from aio_transfer.errors import AioTransferError, PeerLostError, ProviderError, StaleRegionError, TransferAbortedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("as_typed_error", "error_factory", "transfer_error")


def error_factory(error: AioTransferError) -> Callable[[], AioTransferError]:
    """Return a maker of equal errors: one object raised in many tasks would collect everybody's traceback."""

    def make() -> AioTransferError:
        again = type(error).__new__(type(error))
        again.args = error.args
        again.__dict__.update(error.__dict__)
        again.__cause__ = error
        return again

    return make


def as_typed_error(error: Exception, operation: str, peer: str = "") -> AioTransferError:
    """Return it, or what stands for it: a driver may raise anything, and every wait ends with an error of ours."""
    if isinstance(error, AioTransferError):
        return error
    stands_for = ProviderError(operation, peer=peer, code_name=repr(error))
    stands_for.__cause__ = error
    return stands_for


def transfer_error(  # noqa: PLR0913 - what an event and its transfer know
    status: int, code: int, text: str, *, operation: str, peer: str, nbytes: int, region: str = ""
) -> Callable[[], AioTransferError]:
    """Turn a driver's verdict on a transfer into the error of that kind."""
    match status:
        case Status.PEER_LOST:
            return lambda: PeerLostError(peer, text, operation=operation, nbytes=nbytes)
        case Status.STALE_REGION:
            return lambda: StaleRegionError(region or "of the target", peer, text or "its owner has deregistered it")
        case Status.ABORTED:
            return lambda: TransferAbortedError(operation, text, peer=peer, nbytes=nbytes)
        case _:
            return lambda: ProviderError(operation, peer=peer, nbytes=nbytes, code=code, code_name=text)
