"""Conformance checks of counters: values, waits, sources, stall reports."""
