"""Measured processes: the worker program, its state and steps, and the coordinator that drives them."""
