"""The operations a random schedule is made of."""
