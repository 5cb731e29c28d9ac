"""Benchmarks: the engine beside the baseline that the machine gives without it, measured in the same run."""

from aio_transfer.bench.options import Options
from aio_transfer.bench.report.result import Result
from aio_transfer.bench.run import FAMILIES, run

__all__ = ("FAMILIES", "Options", "Result", "run")
