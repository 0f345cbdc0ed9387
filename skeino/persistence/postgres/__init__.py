"""The scheme `postgres`: checkpoints, threads and runs in one database, over one pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skeino.persistence.postgres.connections import PostgresDatabase, open_database, read_schema
from skeino.persistence.postgres.doctor import examine
from skeino.persistence.postgres.saver import StampedPostgresSaver
from skeino.persistence.postgres.script import schema_script
from skeino.persistence.postgres.store import MetadataStore
from skeino.persistence.registry import CheckpointerSpec

__all__ = [
    "MetadataStore",
    "PostgresDatabase",
    "StampedPostgresSaver",
    "examine",
    "open_saver",
    "open_store",
    "read_schema",
    "schema_script",
]


@asynccontextmanager
async def open_saver(spec: CheckpointerSpec) -> AsyncIterator[StampedPostgresSaver]:
    """The checkpointer of scheme `postgres`; its options are those of `open_database`."""
    yield StampedPostgresSaver(await spec.share(open_database))


@asynccontextmanager
async def open_store(spec: CheckpointerSpec) -> AsyncIterator[MetadataStore]:
    """The metadata store of scheme `postgres`, over the checkpointer's pool."""
    yield MetadataStore(await spec.share(open_database), spec.thread_ttl)
