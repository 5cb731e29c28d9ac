"""Adapters: one module per library. It imports only ``base``, and runs in that library's environment."""
