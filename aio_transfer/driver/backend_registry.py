"""Backend registry: finds backends by name, opens their drivers, and chooses the driver for each peer.

Built-in backends are the packages in ``aio_transfer.backends`` that have a ``BACKEND``; third parties add theirs with
an entry point of the group ``aio_transfer.backends``. A backend asked for by name never falls back to another;
``"auto"`` opens every automatic backend that can run, and keeps the reasons of those that cannot.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from aio_transfer.driver.backend import Backend
from aio_transfer.driver.options import suggestion
from aio_transfer.driver.transport_path import TransportPath
from aio_transfer.errors import AioTransferError, BackendUnavailableError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from aio_transfer.driver.protocol import Capabilities, Driver
    from aio_transfer.topology.peer_info import PeerInfo

__all__ = ("BackendReport", "OpenDriver", "automatic", "available", "choose", "load", "names", "open_drivers")

BACKENDS: Final = "aio_transfer.backends"
"""The package of built-in backends, and the entry-point group of third parties."""
LOADED: Final[dict[str, Backend]] = {}
"""Backends found so far, by name: each is looked up once."""


class OpenDriver(Struct, frozen=True):
    """A driver that is open.

    :ivar name: its backend's name
    :ivar driver: the driver itself
    :ivar capabilities: what its ``open()`` returned
    """

    name: str
    driver: Driver
    capabilities: Capabilities

    @property
    def path(self) -> TransportPath:
        """Its transport, as ``transfer.path`` shows it."""
        has = self.capabilities
        return TransportPath(backend=self.name, provider=has.provider, rails=has.rails, protocol=has.protocol)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendReport:
    """Availability of one backend on this machine.

    :param detail: how a write is done, as text
    :param reason: why it is not usable; empty where it is
    :param hint: the command that fixes it
    """

    backend: str
    provider: str = ""
    usable: bool
    rails: tuple[str, ...] = ()
    detail: str = ""
    reason: str = ""
    hint: str = ""


# ------------------------------------------------------------------------------------------------------ finding


def names() -> tuple[str, ...]:
    """Return the names of all installed backends, built-in ones first."""
    from importlib.metadata import entry_points  # 12 ms, and only third parties' backends need it

    built_in = _scan()
    found = {entry.name for entry in entry_points(group=BACKENDS)}
    return (*built_in, *sorted(found - built_in.keys()))


def automatic() -> tuple[Backend, ...]:
    """Return the backends that ``"auto"`` opens where they can run. Those of third parties are never among them."""
    return tuple(found for found in _scan().values() if found is not None and found.automatic)


def load(name: str) -> Backend:
    """Find a backend by its name.

    :raises UsageError: there is no such backend
    :raises BackendUnavailableError: it cannot be imported
    """
    found = LOADED.get(name) or _built_in(name) or _third_party(name)
    if found is None:
        installed = names()
        raise UsageError(f"there is no backend {name!r}: there are {', '.join(installed)}{suggestion(name, installed)}")
    return LOADED.setdefault(name, found)


def _scan() -> dict[str, Backend | None]:
    """Return all built-in backends by name; ``None`` for one that cannot be imported."""
    import pkgutil  # 3 ms, and a backend that is asked for by name needs no scan

    scanned: dict[str, Backend | None] = {}
    for package in pkgutil.iter_modules(importlib.import_module(BACKENDS).__path__):
        try:
            found = _built_in(package.name)
        except BackendUnavailableError:
            scanned[package.name] = None
        else:
            if found is not None:
                scanned[package.name] = found
    return scanned


def _built_in(name: str) -> Backend | None:
    """Import a package of built-in backends; ``None`` when there is no such package, or it is a helper of backends."""
    where = f"{BACKENDS}.{name}"
    try:
        found: object = getattr(importlib.import_module(where), "BACKEND", None)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            return None  # there is no such package; otherwise it lacks another one
        raise BackendUnavailableError(name, f"cannot import {where}: {error}") from error
    return None if found is None else _as_backend(found, name, where)


def _third_party(name: str) -> Backend | None:
    from importlib.metadata import entry_points

    for entry in entry_points(group=BACKENDS, name=name):
        try:
            found: object = entry.load()
        except (ImportError, AttributeError) as error:
            raise BackendUnavailableError(name, f"cannot import {entry.value}: {error}") from error
        return _as_backend(found, name, entry.value)
    return None


def _as_backend(found: object, name: str, where: str) -> Backend:
    if not isinstance(found, Backend):
        raise BackendUnavailableError(name, f"{where} is no aio_transfer.driver.Backend, but {found!r}")
    if found.name != name:
        raise BackendUnavailableError(name, f"{where} is a Backend with another name, {found.name!r}")
    return found


# ------------------------------------------------------------------------------------------------------ opening


def open_driver(name: str, options: Mapping[str, object]) -> OpenDriver:
    """Open one backend by name.

    :raises UsageError: there is no such backend, or it does not take these options
    :raises BackendUnavailableError: it cannot run here; ``hint`` is the command that fixes it
    """
    driver = load(name).make_driver(options)
    return OpenDriver(name, driver, driver.open())


def open_drivers(
    backend: str | Iterable[str], options: Mapping[str, Mapping[str, object]], *, host: str = ""
) -> dict[str, OpenDriver]:
    """Open the backends that an engine asks for: one name, several, or ``"auto"``.

    All options are checked before the first device is opened.

    :param options: per backend; with ``"auto"``, also of those that cannot run here
    :param host: the address where peers find the engine, for options that default to it
    :raises UsageError: there is no such backend, or an option of it is unknown, malformed or out of range; or options
        name a backend that is not asked for
    :raises BackendUnavailableError: a named backend cannot run here, or ``"auto"`` found none that can
    """
    is_auto = backend == "auto"
    named = (backend,) if isinstance(backend, str) else tuple(dict.fromkeys(backend))
    wanted = automatic() if is_auto else tuple(map(load, named))
    if not wanted:
        raise UsageError(f"no backend is asked for: there are {', '.join(names())}")
    _require_asked_for(options, [each.name for each in wanted])
    checked = {each.name: each.options.check(each.name, options.get(each.name, {}), host=host) for each in wanted}
    opened: dict[str, OpenDriver] = {}
    reasons: list[str] = []
    with ExitStack() as undo:
        for each in wanted:
            try:
                driver = each.create(**checked[each.name])
                opened[each.name] = OpenDriver(each.name, driver, driver.open())
            except BackendUnavailableError as error:
                if not is_auto:
                    raise
                reasons.append(str(error))
            else:
                undo.callback(driver.close)
        undo.pop_all()
    if not opened:
        raise BackendUnavailableError("auto", "; ".join(reasons))
    return opened


def _require_asked_for(options: Mapping[str, object], wanted: Sequence[str]) -> None:
    for name in options:
        if name not in wanted:
            load(name)  # or there is none of that name
            raise UsageError(f"there are options for {name!r}, but the backends asked for are {', '.join(wanted)}")


def available() -> list[BackendReport]:
    """Open and close every installed backend; report usable ones first, in the order in which they are preferred."""
    reports = [_report(name) for name in names()]
    return [report for _, report in sorted(reports, key=lambda entry: (not entry[1].usable, entry[0]))]


def _report(name: str) -> tuple[int, BackendReport]:
    """Return what to sort it by, and the report."""
    try:
        opened = open_driver(name, {})
    except BackendUnavailableError as error:
        return 0, BackendReport(backend=name, usable=False, reason=error.reason, hint=error.hint)
    except AioTransferError as error:
        return 0, BackendReport(backend=name, usable=False, reason=str(error))
    has = opened.capabilities
    opened.driver.close()
    return -has.preference, BackendReport(
        backend=name, provider=has.provider, usable=True, rails=has.rails, detail=has.protocol
    )


# ------------------------------------------------------------------------------------------------------ choosing


def choose(opened: Mapping[str, OpenDriver], theirs: PeerInfo, *, same_host: bool) -> OpenDriver:
    """Choose the driver for a peer: the most preferred one that both sides have and that reaches it.

    :param same_host: the kernel has confirmed that the peer is on this host
    :raises UnsupportedError: there is none
    """
    for each in sorted(opened.values(), key=lambda each: -each.capabilities.preference):
        if theirs.backends.get(each.name) != each.capabilities.provider:
            continue
        if each.capabilities.same_host and not same_host:
            continue
        return each
    raise UnsupportedError(
        f"a path to {theirs.label}",
        needs=f"one of {_listed(theirs.backends)}" + ("" if same_host else " across hosts"),
        has=_listed({name: each.capabilities.provider for name, each in opened.items()}),
    )


def _listed(backends: Mapping[str, str]) -> str:
    return ", ".join(f"{name}/{provider}" for name, provider in backends.items()) or "none"
