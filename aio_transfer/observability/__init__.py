"""Statistics snapshots and stall reports."""
