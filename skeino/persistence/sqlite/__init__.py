"""The scheme `sqlite`: checkpoints, threads and runs in one file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skeino.persistence.registry import CheckpointerSpec
from skeino.persistence.sqlite.database import SqliteDatabase, open_database, read_schema
from skeino.persistence.sqlite.doctor import examine
from skeino.persistence.sqlite.saver import StampedSqliteSaver
from skeino.persistence.sqlite.script import schema_script
from skeino.persistence.sqlite.store import SqliteMetadataStore

__all__ = [
    "SqliteDatabase",
    "SqliteMetadataStore",
    "StampedSqliteSaver",
    "examine",
    "open_saver",
    "open_store",
    "read_schema",
    "schema_script",
]


@asynccontextmanager
async def open_saver(spec: CheckpointerSpec) -> AsyncIterator[StampedSqliteSaver]:
    """The checkpointer of scheme `sqlite`; options `setup_schema`, `busy_timeout`, `operation_timeout`."""
    yield StampedSqliteSaver(await spec.share(open_database))


@asynccontextmanager
async def open_store(spec: CheckpointerSpec) -> AsyncIterator[SqliteMetadataStore]:
    """The metadata store of scheme `sqlite`, in the checkpointer's file."""
    yield SqliteMetadataStore(await spec.share(open_database), spec.thread_ttl)
