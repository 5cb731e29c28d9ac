"""Conformance checks of transfers: writes, pages, scatters, reads, messages, bad input."""
