"""Peer groups: membership, barriers and prepared scatters."""
