"""Registry of the conformance checks, and the decorator that adds a check to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aio_transfer.testing.assertions import RULES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from aio_transfer.testing.spec import Needs, Spec

    Body = Callable[[Spec], Awaitable[None]]

__all__ = ("CHECKS", "ConformanceCheck", "check", "select")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceCheck:
    """A promise of the contract, and the code that checks it.

    :param topic: the module of the check
    :param rule: the rule that a failure breaks, a key of :data:`RULES`
    :param needs: capabilities without which the check does not apply
    :param promise: the promise in one sentence
    """

    name: str
    topic: str
    rule: str
    needs: tuple[Needs, ...]
    promise: str
    body: Body

    def missing(self, spec: Spec) -> str:
        """Return the capabilities that the backend lacks for this check; empty if none."""
        return ", ".join(capability for capability in self.needs if not spec.offers(capability))


CHECKS: Final[dict[str, ConformanceCheck]] = {}
"""Every check by its name; filled when :mod:`aio_transfer.testing.checks` is imported."""


def check(rule: str, *needs: Needs) -> Callable[[Body], Body]:
    """Add an ``async def check_xxx(spec)`` to :data:`CHECKS`.

    A check opens its own engines, runs on every event loop, does not sleep and takes at most some tenths of a second.
    The first line of its docstring is the promise.

    :param rule: the rule that a failure breaks, a key of :data:`RULES`
    :param needs: capabilities without which the check is skipped
    :raises ValueError: there is no such rule, or another check has the name
    """

    def add(body: Body) -> Body:
        name = body.__name__.removeprefix("check_")
        if rule not in RULES or name in CHECKS:
            raise ValueError(f"{name}: {rule!r} is not a rule, or the name is taken")
        promise = (body.__doc__ or name).strip().partition("\n")[0]
        topic = body.__module__.rpartition(".")[2]
        CHECKS[name] = ConformanceCheck(name=name, topic=topic, rule=rule, needs=needs, promise=promise, body=body)
        return body

    return add


def select(only: str | Iterable[str] | None = None) -> Sequence[ConformanceCheck]:
    """Return the checks with some names or topics, or all checks.

    :raises KeyError: no check and no topic has that name
    """
    if only is None:
        return tuple(CHECKS.values())
    wanted = (only,) if isinstance(only, str) else tuple(only)
    unknown = [one for one in wanted if one not in CHECKS and all(one != found.topic for found in CHECKS.values())]
    if unknown:
        raise KeyError(f"no check and no topic: {', '.join(unknown)}")
    return tuple(found for found in CHECKS.values() if found.name in wanted or found.topic in wanted)
