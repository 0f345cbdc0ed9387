"""The metadata stores under test."""

from tests.contract.backends import durable_settings, module_database, persistence, settings, store

__all__ = ["durable_settings", "module_database", "persistence", "settings", "store"]
