"""The ``TransferEngine``: its API, its life cycle, and the routing of events and frames."""
