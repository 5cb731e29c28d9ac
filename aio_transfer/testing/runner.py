"""Check runner: runs one check or all of them against a backend, and reports the results."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import anyio

import aio_transfer.testing.checks  # noqa: F401 - the import registers the checks
from aio_transfer.testing.assertions import RULES, ConformanceError, leaf_messages
from aio_transfer.testing.guarded_memory import forget
from aio_transfer.testing.leaks import leaked_since, open_resources
from aio_transfer.testing.registry import ConformanceCheck, select
from aio_transfer.testing.timeouts import patient

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aio_transfer.testing.spec import Spec

__all__ = ("CheckResult", "ConformanceReport", "check_backend", "run_check")

_DEADLINE_S: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """Result of one check on one backend.

    :param reason: why it failed or was skipped
    """

    check: ConformanceCheck
    outcome: Literal["passed", "failed", "skipped"]
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConformanceReport:
    """Results of all checks on one backend."""

    spec: Spec
    results: tuple[CheckResult, ...]

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The results of checks that failed."""
        return tuple(result for result in self.results if result.outcome == "failed")

    def raise_for_failures(self) -> None:
        """Raise an error if a check failed.

        :raises ConformanceError: the backend breaks the contract; the message has a line per broken rule
        """
        if self.failures:
            raise ConformanceError(str(self))

    def __str__(self) -> str:
        """Return a line of totals, and a line per failure."""
        totals = Counter(result.outcome for result in self.results)
        seconds = sum(result.seconds for result in self.results)
        counted = ", ".join(f"{count} {outcome}" for outcome, count in sorted(totals.items()))
        return "\n".join((f"{self.spec}: {counted} in {seconds:.1f} s", *(one.reason for one in self.failures)))


async def check_backend(spec: Spec, *, only: str | Iterable[str] | None = None) -> ConformanceReport:
    """Run every check against a backend.

    :param only: names of checks, or of topics (``"writes"``, ``"barrier"`` …)
    :raises KeyError: there is no such check
    """
    results = []
    for found in select(only):
        missing = found.missing(spec)
        if missing:
            results.append(CheckResult(check=found, outcome="skipped", reason=f"{spec} has no {missing}"))
            continue
        began = time.perf_counter()
        try:
            await run_check(found, spec)
        except ConformanceError as error:
            seconds = time.perf_counter() - began
            results.append(CheckResult(check=found, outcome="failed", reason=str(error), seconds=seconds))
        else:
            results.append(CheckResult(check=found, outcome="passed", seconds=time.perf_counter() - began))
    return ConformanceReport(spec=spec, results=tuple(results))


async def run_check(check: ConformanceCheck, spec: Spec, *, deadline_s: float = _DEADLINE_S) -> None:
    """Run one check, and verify that it leaves no open file descriptor and no native thread.

    :raises ConformanceError: the backend breaks the contract; the message names the rule, what was seen and the seed
    """
    before = open_resources()
    deadline_s = patient(deadline_s)
    try:
        with anyio.fail_after(deadline_s):
            await check.body(spec)
    except TimeoutError as error:
        raise _verdict(check, spec, f"it had not ended after {deadline_s:g} s") from error
    except Exception as error:  # any error of a wrong backend breaks the rule that is checked
        raise _verdict(check, spec, "; ".join(leaf_messages(error))) from error
    finally:
        forget()
    left = await leaked_since(before)
    if left:
        raise _verdict(check, spec, f"left after everything was closed: {', '.join(left)}")


def _verdict(check: ConformanceCheck, spec: Spec, seen: str) -> ConformanceError:
    return ConformanceError(
        f"{check.rule} ({RULES[check.rule]}) is broken on {spec} by {check.topic}.{check.name} "
        f"({check.promise}) seen: {seen} [seed {spec.seed}]"
    )
