"""Command line ``aio-transfer``, also ``python -m aio_transfer``: one module per command.

Commands import what they need when they run: ``--help`` loads no library beyond those of ``import aio_transfer``, and
works where an optional one is missing.
"""

from aio_transfer.cli.main import app, main

__all__ = ("app", "main")
