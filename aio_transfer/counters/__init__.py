"""Completion counters: loop-free state, the awaitable ``ImmCounter``, and the table of one engine."""
