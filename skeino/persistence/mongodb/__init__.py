"""The scheme `mongodb`: checkpoints, threads and runs on one MongoDB deployment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skeino.persistence.mongodb.connections import MongoDatabase, open_database, read_schema
from skeino.persistence.mongodb.doctor import examine
from skeino.persistence.mongodb.saver import StampedMongoDBSaver
from skeino.persistence.mongodb.script import schema_script
from skeino.persistence.mongodb.store import MongoMetadataStore
from skeino.persistence.registry import CheckpointerSpec

__all__ = [
    "MongoDatabase",
    "MongoMetadataStore",
    "StampedMongoDBSaver",
    "examine",
    "open_saver",
    "open_store",
    "read_schema",
    "schema_script",
]


@asynccontextmanager
async def open_saver(spec: CheckpointerSpec) -> AsyncIterator[StampedMongoDBSaver]:
    """The checkpointer of scheme `mongodb`; its options are those of `open_database`."""
    database = await spec.share(open_database)
    saver = await database.in_thread(lambda: StampedMongoDBSaver(database))
    try:
        yield saver
    finally:
        await saver.aclose()


@asynccontextmanager
async def open_store(spec: CheckpointerSpec) -> AsyncIterator[MongoMetadataStore]:
    """The metadata store of scheme `mongodb`, on the checkpointer's deployment."""
    store = MongoMetadataStore(await spec.share(open_database), spec.thread_ttl)
    try:
        yield store
    finally:
        await store.close()
