"""One-sided memory transfer between processes, machines and GPUs that you can await."""

from aio_transfer.engine import TransferEngine
