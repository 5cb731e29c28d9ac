"""The command line: ``aio-transfer``, also ``python -m aio_transfer``.

Commands import what they need when they run: ``--help`` must not wait for NumPy, nor fail where a library is missing.
"""

from aio_transfer.cli.main import app, main

__all__ = ("app", "main")
