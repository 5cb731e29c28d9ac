"""Random schedules against a model of bytes and counts, on the simulated fabric."""
