"""Baselines: what the machine does without the engine, measured in turns with it.

``catalog`` chooses one per backend; ``pipe``, ``perftest`` and ``native_endpoint`` run them. The C++ module
``_baseline`` has the copy loops, the eventfd thread and the single-threaded network endpoint.
"""
