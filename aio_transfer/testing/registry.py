"""The list of checks, and how one joins it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aio_transfer.testing.assertions import RULES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from aio_transfer.testing.spec import Needs, Spec

    Body = Callable[[Spec], Awaitable[None]]

__all__ = ("CHECKS", "Check", "check", "select")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that the contract promises, and the code that finds out.

    :param topic: the module it is in
    :param rule: a key of :data:`RULES`
    :param needs: capabilities without which it does not apply
    :param promise: in one sentence
    """

    name: str
    topic: str
    rule: str
    needs: tuple[Needs, ...]
    promise: str
    body: Body

    def missing(self, spec: Spec) -> str:
        """Return what the backend lacks for this check, or nothing."""
        return ", ".join(capability for capability in self.needs if not spec.offers(capability))


CHECKS: Final[dict[str, Check]] = {}
"""Every check by its name; filled when the package is imported."""


def check(rule: str, *needs: Needs) -> Callable[[Body], Body]:
    """Add an ``async def check_xxx(spec)`` to :data:`CHECKS`.

    It opens its engines itself, is loop-agnostic, never sleeps and takes at most some tenths of a second.

    :param rule: a key of :data:`RULES`: what a failure breaks
    :param needs: capabilities without which it is skipped
    """

    def add(body: Body) -> Body:
        name = body.__name__.removeprefix("check_")
        if rule not in RULES or name in CHECKS:
            raise ValueError(f"{name}: {rule!r} is no rule, or the name is taken")
        promise = (body.__doc__ or name).strip().partition("\n")[0]
        topic = body.__module__.rpartition(".")[2]
        CHECKS[name] = Check(name=name, topic=topic, rule=rule, needs=needs, promise=promise, body=body)
        return body

    return add


def select(only: str | Iterable[str] | None = None) -> Sequence[Check]:
    """Return the checks of some names or topics, or all.

    :raises KeyError: nothing has that name
    """
    if only is None:
        return tuple(CHECKS.values())
    wanted = (only,) if isinstance(only, str) else tuple(only)
    unknown = [one for one in wanted if one not in CHECKS and all(one != found.topic for found in CHECKS.values())]
    if unknown:
        raise KeyError(f"no check and no topic: {', '.join(unknown)}")
    return tuple(found for found in CHECKS.values() if found.name in wanted or found.topic in wanted)
