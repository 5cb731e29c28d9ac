"""Programs on top of the engine: what the command line runs, and what an integrator may start from."""

__all__ = ()
