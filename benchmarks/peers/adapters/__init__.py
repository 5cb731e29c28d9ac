"""One module per library. It imports nothing of ours but its base, and runs in that library's environment."""
