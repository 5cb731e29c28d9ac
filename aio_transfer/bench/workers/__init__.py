"""Measured processes of the benchmark.

``coordinator`` runs in the process of the command and starts ``worker`` processes, here or through ``remote_worker`` on
another host. It calls steps in them, coroutine functions on a ``WorkerState``: ``bandwidth_steps``, ``latency_steps``,
and those of the families and baselines.
"""
