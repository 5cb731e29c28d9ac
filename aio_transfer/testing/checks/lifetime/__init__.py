"""Conformance checks of lifetimes: engines, peers, regions, descriptors, cancellation, failures, threads and forks."""
