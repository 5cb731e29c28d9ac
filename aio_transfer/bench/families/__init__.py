"""Benchmark families: one module per ``aio-transfer bench`` command, each with ``run(options)``.

``bandwidth`` is common to the families that move batches. ``aio_transfer.bench.run`` maps commands to modules.
"""
