"""The model a random schedule is checked against: engines, memory, counters and tasks."""
