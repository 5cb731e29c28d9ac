"""Baselines: what the machine gives without the engine, measured in the same run."""
