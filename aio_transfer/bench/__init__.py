"""Benchmark: the engine beside a baseline of the machine, measured in turns in the same run.

``families`` has one module per test, ``workers`` the measured processes, ``baselines`` what they are compared with, and
``report`` the results. Comparisons with other libraries are not here, but in ``benchmarks/peers``.
"""

from aio_transfer.bench.options import Options
from aio_transfer.bench.report.result import Result
from aio_transfer.bench.run import FAMILIES, run

__all__ = ("FAMILIES", "Options", "Result", "run")
