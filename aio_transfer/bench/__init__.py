"""The benchmark: what the engine does, beside what the machine gives without it, in the same run."""

from aio_transfer.bench.options import Options
from aio_transfer.bench.result import Result
from aio_transfer.bench.run import FAMILIES, run

__all__ = ("FAMILIES", "Options", "Result", "run")
