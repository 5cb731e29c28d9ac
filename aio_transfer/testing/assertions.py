"""What a check says when a backend breaks the contract."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("MISTYPED", "RULES", "ConformanceError", "Refusal", "claim", "leaf_messages", "refused")

MISTYPED: Final = (UsageError, TypeError)
"""What an argument of a type that annotations forbid may raise; still before anything is started."""

RULES: Final = {
    "rule 1": "no operation, and no piece of one, is ordered with any other",
    "rule 2": "when a counter shows a write, its payload is visible",
    "rule 3": "exactly one count per destination chunk the caller named, never fewer, never more",
    "rule 4": "counts are never lost, also those that come before anybody waits",
    "rule 5": "wait(n) consumes n counts in FIFO order; a cancelled wait consumes nothing",
    "rule 6": "await transfer returns when the source may be reused, and raises only once every piece has stopped",
    "rule 7": "cancelling an await never corrupts; memory stays leased until nothing moves in it",
    "rule 8": "every wait ends: with what it waited for, or with a typed error",
    "rule 9": "a descriptor is a capability: checked where it is used, refused when its region is gone",
    "rule 10": "a barrier is the whole barrier: nobody leaves an epoch before everybody has entered it",
    "bad input": "what cannot be meant is refused with a typed error, and nothing is written, lost or leaked",
    "closing": "closing always closes, gives everything back and wakes whoever waits",
    "place": "an engine is used from the loop, thread and process that opened it; elsewhere it refuses",
    "messages": "messages arrive once, are bounded by a window, and wait for nobody else's",
    "peers": "one connection per pair of engines, to whom it says, by somebody who may; it ends with a reason",
    "reports": "what an engine says of itself is true",
}


class ConformanceError(AssertionError):
    """A backend, or the engine above it, does not keep the contract; the message says which rule and what was seen."""


class Refusal:
    """The error that a ``with refused(...)`` block met."""

    error: BaseException | None = None

    def __str__(self) -> str:
        """Return its words."""
        return str(self.error)


def claim(condition: object, seen: str) -> None:
    """Demand something of the backend.

    :param seen: what was seen instead, with values
    :raises ConformanceError: ``condition`` is false
    """
    if not condition:
        raise ConformanceError(seen)


@contextlib.contextmanager
def refused(what: str, *kinds: type[Exception]) -> Iterator[Refusal]:
    """Demand that the block raises one of ``kinds``, and no other error.

    :param what: what is being tried
    """
    refusal = Refusal()
    try:
        yield refusal
    except kinds as error:
        refusal.error = error
        return
    except Exception as error:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise ConformanceError(f"{what}: {wanted} was due, {type(error).__name__} came: {error}") from error
    raise ConformanceError(f"{what}: nothing was raised, {' or '.join(kind.__name__ for kind in kinds)} was due")


def leaf_messages(error: BaseException) -> list[str]:
    """Return a message for the error, or for each error inside an exception group."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in leaf_messages(inner)]
    return [str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}"]
