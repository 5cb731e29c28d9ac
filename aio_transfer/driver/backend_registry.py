"""Which backends there are, which can run here, and which one serves a given peer.

A name leads to an entry point of the group ``aio_transfer.backends``, which third parties may extend. An explicit
choice never falls back; ``"auto"`` opens what it can and keeps the reasons for the rest.
"""

from __future__ import annotations

import contextlib
import importlib
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aio_transfer.driver.transport_path import TransportPath
from aio_transfer.errors import AioTransferError, BackendUnavailableError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from aio_transfer.driver.protocol import Capabilities, Driver, DriverFactory
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("AUTO", "BackendReport", "OpenDriver", "available", "choose", "load", "names", "open_drivers")

AUTO: Final = ("shm", "verbs", "libfabric", "tcp")
"""The fastest first, but for libfabric without a device for it: see :func:`choose`. Others are used only when named."""
BUILT_IN: Final = {
    "shm": "aio_transfer.backends.shm:create",
    "verbs": "aio_transfer.backends.verbs:create",
    "libfabric": "aio_transfer.backends.libfabric:create",
    "tcp": "aio_transfer.backends.tcp:create",
    "sim": "aio_transfer.backends.sim:create",
    "pyverbs": "aio_transfer.backends.pyverbs:create",
}
LISTENING: Final = ("tcp",)
"""Those whose peers dial an ``address``."""
SOCKETS: Final = ("tcp", "udp", "sockets")
"""libfabric's providers that have no device below them."""
GROUP: Final = "aio_transfer.backends"


class OpenDriver(Struct, frozen=True):
    """A driver that runs, and what it can do."""

    name: str
    driver: Driver
    capabilities: Capabilities

    @property
    def path(self) -> TransportPath:
        """What it is, in the words of ``transfer.path``."""
        has = self.capabilities
        return TransportPath(backend=self.name, provider=has.provider, rails=has.rails, protocol=has.protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendReport:
    """What one backend can do on this machine.

    :param reason: why it is not usable; empty where it is
    :param hint: the command that mends it
    """

    backend: str
    provider: str = ""
    usable: bool
    rails: tuple[str, ...] = ()
    detail: str = ""
    reason: str = ""
    hint: str = ""


def names() -> tuple[str, ...]:
    """Return every backend that is installed, ours first."""
    from importlib.metadata import entry_points  # 12 ms, and only third parties' backends need it

    found = {entry.name for entry in entry_points(group=GROUP)}
    return (*BUILT_IN, *sorted(found - BUILT_IN.keys()))


def load(name: str) -> DriverFactory:
    """Find a backend's factory by its name.

    :raises UsageError: there is no such backend
    :raises BackendUnavailableError: it cannot be imported
    """
    where = BUILT_IN.get(name)
    if where is None:
        from importlib.metadata import entry_points

        found = tuple(entry_points(group=GROUP, name=name))
        if not found:
            raise UsageError(f"there is no backend {name!r}; there are {', '.join(names())}")
        where = found[0].value
    module, _, attribute = where.partition(":")
    try:
        factory: DriverFactory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise BackendUnavailableError(name, f"cannot import {where}: {error}") from error
    return factory


def open_one(name: str, options: Mapping[str, object]) -> OpenDriver:
    """Open a backend by name.

    :raises BackendUnavailableError: it cannot run here; the error says what would help
    """
    driver = load(name)(**options)
    return OpenDriver(name, driver, driver.open())


def open_drivers(
    backend: str | Iterable[str], options: Mapping[str, Mapping[str, object]], *, host: str = ""
) -> dict[str, OpenDriver]:
    """Open what was asked for: one name, several, or ``"auto"``.

    :param host: where peers find this engine: a backend that listens does so there too, unless its options say where
    :raises UsageError: a name is unknown, or options name a backend that is not opened
    :raises BackendUnavailableError: a named backend cannot run here, or ``"auto"`` found none that can
    """
    wanted = AUTO if backend == "auto" else (backend,) if isinstance(backend, str) else tuple(backend)
    unknown = options.keys() - BUILT_IN.keys()
    if unknown:
        unknown -= set(names())
    if unknown or not wanted:
        raise UsageError(f"no such backend: {', '.join(sorted(unknown)) or 'none was named'}")
    opened: dict[str, OpenDriver] = {}
    reasons: list[str] = []
    try:
        for name in wanted:
            if backend == "auto" and name not in BUILT_IN:
                continue
            try:
                opened[name] = open_one(name, _with_address(name, options.get(name, {}), host))
            except BackendUnavailableError as error:
                if backend != "auto":
                    raise
                reasons.append(str(error))
        if not opened:
            raise BackendUnavailableError("auto", "; ".join(reasons))  # noqa: TRY301 - nothing is open then
    except BaseException:
        for one in opened.values():
            one.driver.close()
        raise
    return opened


def choose(opened: Mapping[str, OpenDriver], theirs: PeerInfo, *, same_host: bool) -> OpenDriver:
    """Pick the path to a peer: the first in order of speed that both have and that reaches it.

    That is the order of :data:`AUTO`, and then what is in none; libfabric over sockets comes last of all, since our own
    ``tcp`` moves small pages twice as fast.

    :param same_host: the kernel vouches that the peer is on this host
    :raises UnsupportedError: there is none
    """
    for name in sorted(opened, key=lambda name: _standing(opened[name])):
        one = opened[name]
        if theirs.backends.get(name) != one.capabilities.provider:
            continue
        if one.capabilities.same_host and not same_host:
            continue
        return one
    raise UnsupportedError(
        f"a path to {theirs.label}",
        needs=f"one of {_listed(theirs.backends)}" + ("" if same_host else " across hosts"),
        has=_listed({name: one.capabilities.provider for name, one in opened.items()}),
    )


def available() -> list[BackendReport]:
    """Open and close every installed backend, and report how that went."""
    reports: list[BackendReport] = []
    for name in names():
        try:
            one = open_one(name, {})
        except BackendUnavailableError as error:
            reports.append(BackendReport(backend=name, usable=False, reason=error.reason, hint=error.hint))
        except AioTransferError as error:
            reports.append(BackendReport(backend=name, usable=False, reason=str(error)))
        else:
            has = one.capabilities
            one.driver.close()
            reports.append(
                BackendReport(backend=name, provider=has.provider, usable=True, rails=has.rails, detail=has.protocol)
            )
    return reports


def _standing(one: OpenDriver) -> int:
    if one.name == "libfabric" and one.capabilities.provider.startswith(SOCKETS):
        return len(AUTO) + 1
    return AUTO.index(one.name) if one.name in AUTO else len(AUTO)


def _with_address(name: str, options: Mapping[str, object], host: str) -> Mapping[str, object]:
    if name in LISTENING:
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                if any(socket.inet_pton(family, host)):  # not the one that stands for all
                    return {"address": host, **options}
    return options


def _listed(backends: Mapping[str, str]) -> str:
    return ", ".join(f"{name}/{provider}" for name, provider in backends.items()) or "none"
