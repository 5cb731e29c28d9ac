"""Model that a random schedule is checked against: engines, memory, counters, tasks. The operations are not here."""
