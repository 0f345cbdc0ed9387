"""Checkpointers and metadata stores: opening them, registering one's own, and the rows they keep."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from skeino.persistence.memory import InMemoryMetadataStore
from skeino.persistence.opening import Persistence, open_checkpointer, open_persistence
from skeino.persistence.protocol import MetadataStoreProtocol, RunSearch, ThreadSearch
from skeino.persistence.registry import CheckpointerSpec, register_checkpointer, register_metadata_store
from skeino.persistence.rows import (
    ANY_OWNER,
    RunError,
    RunFinish,
    RunRow,
    RunStatus,
    ThreadRow,
    ThreadStatus,
    ThreadTTL,
)
from skeino.persistence.stamping import RunStampMixin

if TYPE_CHECKING:
    from skeino.persistence.mongodb import MongoMetadataStore
    from skeino.persistence.postgres import MetadataStore
    from skeino.persistence.sqlite import SqliteMetadataStore

_LAZY = {  # a driver is imported when its store is asked for
    "MetadataStore": "postgres",
    "MongoMetadataStore": "mongodb",
    "SqliteMetadataStore": "sqlite",
}

__all__ = [
    "ANY_OWNER",
    "CheckpointerSpec",
    "InMemoryMetadataStore",
    "MetadataStore",
    "MetadataStoreProtocol",
    "MongoMetadataStore",
    "Persistence",
    "RunError",
    "RunFinish",
    "RunRow",
    "RunSearch",
    "RunStampMixin",
    "RunStatus",
    "SqliteMetadataStore",
    "ThreadRow",
    "ThreadSearch",
    "ThreadStatus",
    "ThreadTTL",
    "open_checkpointer",
    "open_persistence",
    "register_checkpointer",
    "register_metadata_store",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
