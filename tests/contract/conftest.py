"""The metadata stores under test."""

from tests.contract.backends import durable_settings, module_database, module_mongodb, persistence, settings, store

__all__ = ["durable_settings", "module_database", "module_mongodb", "persistence", "settings", "store"]
