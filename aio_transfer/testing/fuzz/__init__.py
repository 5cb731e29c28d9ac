"""Fuzz campaign: random schedules on the simulated fabric, checked against a model. Single promises are in checks."""
