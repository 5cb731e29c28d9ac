"""Conformance kit: checks whether a backend keeps the contract. Only :mod:`aio_transfer.testing.plugin` needs pytest.

.. code-block:: python

    from aio_transfer.testing import Spec, check_backend

    report = await check_backend(Spec(backend="mine"))
    report.raise_for_failures()
"""

from aio_transfer.testing.assertions import RULES, ConformanceError, claim, refused
from aio_transfer.testing.fixtures import exactly, mesh, pair, until
from aio_transfer.testing.fuzz.schedule import ScheduleError, run_operations, run_schedule, run_schedules
from aio_transfer.testing.fuzz.shrink import shrink
from aio_transfer.testing.guarded_memory import Memory
from aio_transfer.testing.registry import CHECKS, ConformanceCheck, check, select
from aio_transfer.testing.runner import CheckResult, ConformanceReport, check_backend, run_check
from aio_transfer.testing.sim_fabric import Faults, Packet, PacketHook, PacketKind, SimFabric, Verdict
from aio_transfer.testing.spec import Needs, Spec

__all__ = (
    "CHECKS",
    "RULES",
    "CheckResult",
    "ConformanceCheck",
    "ConformanceError",
    "ConformanceReport",
    "Faults",
    "Memory",
    "Needs",
    "Packet",
    "PacketHook",
    "PacketKind",
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
    "run_operations",
    "run_schedule",
    "run_schedules",
    "select",
    "shrink",
    "until",
)
