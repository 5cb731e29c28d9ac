"""Child processes that talk to their parent in JSON lines. Used by the demo and the benchmark."""
