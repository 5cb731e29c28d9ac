"""Conformance checks of counters: values, waits and stall reports. Counts of transfers are in transfers."""
