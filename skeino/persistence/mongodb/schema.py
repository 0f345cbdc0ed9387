"""The collections of skeino and their indexes, versioned. LangGraph's saver makes its own."""

from __future__ import annotations

from typing import Any, Final

from pymongo import ASCENDING, IndexModel
from pymongo.asynchronous.database import AsyncDatabase

from skeino.errors import SchemaError

Database = AsyncDatabase[dict[str, Any]]

VERSION: Final = 1
SCHEMA: Final = "app_schema"
THREADS: Final = "app_threads"
RUNS: Final = "app_runs"
WORKERS: Final = "app_workers"
_CHECKPOINTS: Final = ("checkpoints", "checkpoint_writes")
_OURS: Final = (SCHEMA, THREADS, RUNS, WORKERS)

# Of the runs only the active ones are looked for by worker, and to see whether a thread is busy: small indexes.
_ACTIVE: Final = {"partialFilterExpression": {"active": True}}
INDEXES: Final[dict[str, list[IndexModel]]] = {
    THREADS: [
        IndexModel([("updated_at", ASCENDING), ("_id", ASCENDING)], name="updated"),
        IndexModel([("created_at", ASCENDING), ("_id", ASCENDING)], name="created"),
    ],
    RUNS: [
        IndexModel([("thread_id", ASCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)], name="of_thread"),
        IndexModel([("created_at", ASCENDING), ("_id", ASCENDING)], name="created"),
        IndexModel([("thread_id", ASCENDING)], name="active_of_thread", **_ACTIVE),
        IndexModel([("worker_id", ASCENDING)], name="active_of_worker", **_ACTIVE),
    ],
    WORKERS: [IndexModel([("lost_at", ASCENDING)], name="lost")],
}


async def create(metadata: Database, checkpoints: Database) -> None:
    """Make what is missing of skeino's. Safe with many processes at once: making an index again changes nothing.

    Raises:
        SchemaError: the database's schema is newer than this code.
    """
    if await _version(metadata) == VERSION and not await _missing(metadata, _OURS):
        return
    for collection, indexes in INDEXES.items():
        await metadata[collection].create_indexes(indexes)
    await metadata[SCHEMA].update_one({"_id": "schema"}, {"$max": {"version": VERSION}}, upsert=True)


async def verify(metadata: Database, checkpoints: Database) -> None:
    """Check that everything is there, LangGraph's collections too, which its saver would make.

    Raises:
        SchemaError: a collection is missing, or the schema is of another version.
    """
    missing = [*await _missing(checkpoints, _CHECKPOINTS), *await _missing(metadata, _OURS)]
    if missing:
        raise SchemaError(
            f"The database lacks the collections {', '.join(missing)}: start once with setup_schema=True, as a user "
            "who may make them."
        )
    if await _version(metadata) != VERSION:
        raise SchemaError("The database has an older schema: start once with setup_schema=True to bring it up to date.")


async def _missing(database: Database, collections: tuple[str, ...]) -> list[str]:
    found = await database.list_collection_names()
    return [name for name in collections if name not in found]


async def _version(metadata: Database) -> int:
    document = await metadata[SCHEMA].find_one({"_id": "schema"})
    version: int = (document or {}).get("version") or 0
    if version > VERSION:
        raise SchemaError(
            f"The database has schema version {version}, this skeino-asgi knows {VERSION}: install a newer one."
        )
    return version
