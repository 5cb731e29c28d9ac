"""Hooks of the kit's pytest plugin: one seed for the whole run, printed first."""

from aio_transfer.testing.plugin import pytest_addoption, pytest_configure, pytest_configure_node, pytest_report_header

__all__ = ("pytest_addoption", "pytest_configure", "pytest_configure_node", "pytest_report_header")
