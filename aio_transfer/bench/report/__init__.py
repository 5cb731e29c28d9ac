"""Results: statistics of samples, one result per test and size, and its display as JSON, table, text or plot."""
