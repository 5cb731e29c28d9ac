"""The conformance kit: whether a backend keeps the contract. It needs no pytest.

.. code-block:: python

    from aio_transfer.testing import Spec, check_backend

    report = await check_backend(Spec(backend="mine"))
    report.raise_for_failures()
"""

from .claims import RULES, ConformanceError, claim, refused
from .engines import exactly, mesh, pair, until
from .fabric import Faults, Packet, PacketKind, Route, SimFabric, Verdict
from .memory import Memory
from .registry import CHECKS, Check, check, select
from .runner import Report, Result, check_backend, run_check
from .schedules import ScheduleError, run_moves, run_schedule, run_schedules
from .shrink import shrink
from .spec import Needs, Spec

__all__ = (
    "CHECKS",
    "RULES",
    "Check",
    "ConformanceError",
    "Faults",
    "Memory",
    "Needs",
    "Packet",
    "PacketKind",
    "Report",
    "Result",
    "Route",
    "ScheduleError",
    "SimFabric",
    "Spec",
    "Verdict",
    "check",
    "check_backend",
    "claim",
    "exactly",
    "mesh",
    "pair",
    "refused",
    "run_check",
    "run_moves",
    "run_schedule",
    "run_schedules",
    "select",
    "shrink",
    "until",
)
