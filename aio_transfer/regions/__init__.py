"""Registered memory: regions, slices, page lists, descriptors and leases."""
