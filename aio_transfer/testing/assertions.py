"""Assertions of the checks: the rules of the contract, and the error for a broken one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from aio_transfer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ("MISTYPED", "RULES", "CaughtError", "ConformanceError", "claim", "leaf_messages", "refused")

MISTYPED: Final = (UsageError, TypeError)
"""The errors that an argument of a wrong type may raise, before anything is started."""

RULES: Final = {
    "rule 1": "no operation, and no piece of one, is ordered with any other",
    "rule 2": "when a counter shows a write, its payload is visible",
    "rule 3": "exactly one count per destination chunk that the caller named, never fewer, never more",
    "rule 4": "counts are never lost, also those that arrive before any wait",
    "rule 5": "wait(n) consumes n counts in FIFO order; a cancelled wait consumes nothing",
    "rule 6": "await transfer returns when the source may be reused, and raises only once every piece has stopped",
    "rule 7": "cancelling an await never corrupts; memory stays leased until nothing moves in it",
    "rule 8": "every wait ends: with its counts or result, or with a typed error",
    "rule 9": "a descriptor is a capability: checked where it is used, refused when its region is gone",
    "rule 10": "no member leaves an epoch of a barrier before every member has entered it",
    "bad input": "invalid arguments are refused with a typed error, and nothing is written, lost or leaked",
    "closing": "closing always succeeds, releases everything and wakes every waiter",
    "affinity": "an engine works only in the event loop, thread and process that opened it, and refuses elsewhere",
    "messages": "messages arrive once, are bounded by a window, and do not wait for those of other peers",
    "peers": "a pair of engines has one connection, to the intended peer, if authenticated; it ends with a reason",
    "reports": "statistics, paths and stall reports of an engine are true",
}


class ConformanceError(AssertionError):
    """A backend, or the engine above it, breaks the contract; the message names the rule and what was seen."""


class CaughtError:
    """The error that a ``with refused(...)`` block has caught."""

    error: BaseException | None = None

    def __str__(self) -> str:
        """Return its message."""
        return str(self.error)


def claim(condition: object, seen: str) -> None:
    """Check a condition of the contract.

    :param seen: what was seen instead, with values
    :raises ConformanceError: ``condition`` is false
    """
    if not condition:
        raise ConformanceError(seen)


@contextlib.contextmanager
def refused(what: str, *kinds: type[Exception]) -> Iterator[CaughtError]:
    """Check that the block raises one of ``kinds``, and no other error.

    :param what: what the block tries
    """
    refusal = CaughtError()
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
