"""Backend: a transport as the registry finds it, with its name, its options and how its drivers are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aio_transfer.driver.options import OptionTable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from aio_transfer.driver.protocol import Driver

__all__ = ("Backend",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One transport. A built-in package exposes it as ``BACKEND``; the entry point of a third party leads to it.

    :param name: as in ``TransferEngine(backend="name")``; of a third party, the name of its entry point
    :param create: makes an unopened driver from the checked options as keywords; it acquires nothing yet
    :param options: what ``options={"name": {...}}`` may hold
    :param automatic: ``backend="auto"`` opens it where it can run; built-in backends only
    :param summary: what carries the bytes and where, in one sentence
    """

    name: str
    create: Callable[..., Driver]
    options: OptionTable = field(default_factory=OptionTable)
    automatic: bool = False
    summary: str = ""

    def make_driver(self, options: Mapping[str, object], *, host: str = "") -> Driver:
        """Check the options, and make an unopened driver.

        :param host: the address where peers find the engine, for options that default to it
        :raises UsageError: an option is unknown, malformed or out of range
        """
        return self.create(**self.options.check(self.name, options, host=host))
