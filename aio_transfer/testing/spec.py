"""What a backend's author tells the kit: how to open an engine on it, and what it does not offer."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from aio_transfer.driver.backend_registry import load, open_driver
from aio_transfer.driver.protocol import PreparedDriver, SpinningDriver
from aio_transfer.engine.engine import TransferEngine
from aio_transfer.errors import BackendUnavailableError
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ("BOUNDARIES", "Needs", "Spec")

Needs: TypeAlias = Literal[
    "foreign_memory", "fork", "messages", "post_each", "reads", "same_host", "several_rails", "spin_wait"
]
"""A capability without which a check is skipped."""

BOUNDARIES: Final = (4 << 10, 16 << 10, 128 << 10, 256 << 10, 1 << 20)
"""Sizes in bytes at which our own transports change how they move a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """One backend as the checks see it: a third-party author writes one of these, and nothing else.

    :param backend: its name in the entry-point group ``aio_transfer.backends``
    :param options: what its factory takes
    :param name: what reports call it; by default ``backend``
    :param reads: one-sided reads are offered
    :param messages: ``engine.send`` works; the engine itself carries messages where the driver does not
    :param foreign_memory: memory that did not come from ``engine.allocate`` can be a target
    :param same_host: it reaches only peers on this host
    :param fork: a process may fork while an engine is open
    :param rails: how many NICs its engines have
    :param boundaries: sizes around which exactness is checked: where it cuts, stripes or changes its way
    :param settings: for every engine of every check, as keywords of :class:`TransferEngine`
    :param seed: of all randomness; reports name it, and giving it again repeats a run
    """

    backend: str
    options: Mapping[str, object] = field(default_factory=dict)
    name: str = ""
    reads: bool = True
    messages: bool = True
    foreign_memory: bool = True
    same_host: bool = False
    fork: bool = True
    rails: int = 1
    boundaries: Sequence[int] = BOUNDARIES
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = field(default_factory=lambda: secrets.randbits(32))

    def __str__(self) -> str:
        """Return what reports call it."""
        return self.name or self.backend

    def offers(self, capability: Needs) -> bool:
        """Say whether checks that need ``capability`` apply."""
        if capability == "several_rails":
            return self.rails > 1
        if capability in {"post_each", "spin_wait"}:
            return capability in self._optional_methods()
        return bool(getattr(self, capability))

    def _optional_methods(self) -> frozenset[str]:
        """Return the names of the driver's optional methods; it is opened for a moment to find out."""
        try:
            opened = open_driver(self.backend, self.spinning().options)
        except BackendUnavailableError:
            return frozenset()
        opened.driver.close()
        spins = opened.capabilities.spins and isinstance(opened.driver, SpinningDriver)
        offered = {"post_each": isinstance(opened.driver, PreparedDriver), "spin_wait": spins}
        return frozenset(name for name, is_offered in offered.items() if is_offered)

    def spinning(self) -> Spec:
        """Return the same with ``progress="spin"``, where the backend has that option."""
        has_option = "progress" in load(self.backend).options
        return replace(self, options={**self.options, "progress": "spin"}) if has_option else self

    def engine(self, **overrides: Any) -> TransferEngine:
        """Make an engine on this backend alone, not yet entered.

        :param overrides: keywords of :class:`TransferEngine`
        """
        settings: dict[str, Any] = {"backend": self.backend, "options": {self.backend: dict(self.options)}}
        # The engine's defaults, where nothing is slow.
        settings |= {"grace_s": patient(1.0), "connect_deadline_s": patient(10.0)}
        return TransferEngine(**(settings | dict(self.settings) | overrides))

    def rng(self) -> np.random.Generator:
        """Return a generator at the beginning of the seed's sequence."""
        return np.random.default_rng(self.seed)

    def seeded(self, seed: int) -> Spec:
        """Return the same with another seed."""
        return replace(self, seed=seed)
