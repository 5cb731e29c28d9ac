"""Conformance checks of transfers: memory, writes, pages, scatters, reads, messages, bad input. No checks of waits."""
