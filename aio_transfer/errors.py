"""Errors of the package: one root, and one level below it by the kind of fault.

Messages are built in the constructors, so that the same fault reads the same everywhere.
"""

__all__ = (
    "AioTransferError",
    "AuthenticationError",
    "BackendUnavailableError",
    "BusyError",
    "ClosedError",
    "PeerLostError",
    "ProtocolError",
    "ProviderError",
    "StaleRegionError",
    "TransferAbortedError",
    "UnsupportedError",
    "UsageError",
    "WouldBlock",
)


class AioTransferError(Exception):
    """Base class of every error that this package raises on purpose."""


class UsageError(AioTransferError, ValueError):
    """The arguments or the use of the API are invalid; nothing was started."""


class BackendUnavailableError(AioTransferError):
    """A backend cannot run on this machine now."""

    def __init__(self, backend: str, reason: str, hint: str = "") -> None:
        """Name the backend, why it cannot run, and the command that fixes it."""
        self.backend = backend
        self.reason = reason
        self.hint = hint
        super().__init__(f"backend {backend!r} is unavailable: {reason}" + (f" (try: {hint})" if hint else ""))


class UnsupportedError(AioTransferError):
    """The chosen path lacks a capability the operation needs."""

    def __init__(self, capability: str, *, needs: object, has: object) -> None:
        """Name the capability, what it needs and what there is."""
        self.capability = capability
        self.needs = needs
        self.has = has
        super().__init__(f"{capability} is not supported here: needs {needs}, has {has}")


class ProviderError(AioTransferError):
    """The transport itself refused or failed an operation."""

    def __init__(self, operation: str, *, peer: str = "", nbytes: int = 0, code: int = 0, code_name: str = "") -> None:
        """Name the operation, the peer, its size in bytes and the native code."""
        self.operation = operation
        self.peer = peer
        self.nbytes = nbytes
        self.code = code
        self.code_name = code_name
        whom = f" with {peer}" if peer else ""
        size = f" of {nbytes} B" if nbytes else ""
        super().__init__(f"{operation}{size}{whom} failed: {code_name or 'native error'} ({code})")


class PeerLostError(AioTransferError):
    """The peer died, fell silent, closed, or declared us lost."""

    def __init__(self, peer: str, reason: str, *, operation: str = "", nbytes: int = 0) -> None:
        """Name the peer, how it was lost, and what depended on it."""
        self.peer = peer
        self.reason = reason
        self.operation = operation
        self.nbytes = nbytes
        size = f" of {nbytes} B" if nbytes else ""
        what = f" during {operation}{size}" if operation else ""
        super().__init__(f"peer {peer} lost{what}: {reason}")


class TransferAbortedError(AioTransferError):
    """A transfer stopped before its end, here or at the peer that announced it."""

    def __init__(self, operation: str, reason: str, *, peer: str = "", nbytes: int = 0) -> None:
        """Name the operation, why it stopped, and the peer."""
        self.operation = operation
        self.reason = reason
        self.peer = peer
        self.nbytes = nbytes
        whom = f" with {peer}" if peer else ""
        size = f" of {nbytes} B" if nbytes else ""
        super().__init__(f"{operation}{size}{whom} aborted: {reason}")


class StaleRegionError(AioTransferError):
    """The region behind a descriptor is gone; nothing was written."""

    def __init__(self, region: str, peer: str, reason: str = "its owner has deregistered it") -> None:
        """Name the region, its owner, and why it is gone."""
        self.region = region
        self.peer = peer
        super().__init__(f"region {region} of {peer} is stale: {reason}")


class AuthenticationError(AioTransferError):
    """The peer could not prove that it holds the shared secret."""

    def __init__(self, peer: str, reason: str) -> None:
        """Name the address and the step that failed; never the secret."""
        self.peer = peer
        super().__init__(f"authentication with {peer} failed: {reason}")


class ProtocolError(AioTransferError):
    """The peer sent data that is not this protocol, or not this version of it."""

    def __init__(self, peer: str, reason: str) -> None:
        """Name the address and the fault."""
        self.peer = peer
        super().__init__(f"protocol error with {peer}: {reason}")


class ClosedError(AioTransferError):
    """The object was closed here before, or while, it was used."""

    def __init__(self, what: str) -> None:
        """Name the closed object."""
        super().__init__(f"{what} is closed")


class BusyError(AioTransferError):
    """Another task is using an object that admits one user."""

    def __init__(self, what: str, action: str) -> None:
        """Name the object and the action that is under way."""
        super().__init__(f"another task is already {action} {what}")


class WouldBlock(AioTransferError):  # noqa: N818 - the field's name for it (anyio, trio)
    """A ``*_nowait`` call could not finish at once; nothing was consumed."""
