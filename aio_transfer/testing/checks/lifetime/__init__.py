"""Conformance checks of lifetimes: cancellation, closing, failures, peers, regions, descriptors, threads."""
