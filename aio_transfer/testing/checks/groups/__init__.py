"""Conformance checks of groups: barriers, leaving, re-creation."""
