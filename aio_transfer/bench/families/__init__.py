"""Benchmark families: one module per ``aio-transfer bench`` command."""
