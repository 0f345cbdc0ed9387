"""The collections of skeino and their indexes, versioned. LangGraph's saver makes its own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError, OperationFailure

from skeino.errors import SchemaError
from skeino.persistence.versions import APPLY, PRINT, SchemaState, logger

Database = AsyncDatabase[dict[str, Any]]
Command = dict[str, Any]

SCHEMA: Final = "app_schema"
THREADS: Final = "app_threads"
RUNS: Final = "app_runs"
WORKERS: Final = "app_workers"
SWEEPS: Final = "app_sweeps"
_CHECKPOINTS: Final = ("checkpoints", "checkpoint_writes")
_OURS: Final = (SCHEMA, THREADS, RUNS, WORKERS, SWEEPS)

# Few runs are active, and few rows have one of the rarer statuses: small indexes. And few indexes: in a transaction
# MongoDB 6.0 reads the definitions of all of them, for each of them, whenever a document's key in one changes.
_ACTIVE: Final = {"partialFilterExpression": {"active": True}}
RARE_OF_RUNS: Final = ("error", "timeout", "interrupted")  # `documents.run_filter` names all, where a search has two
_RARE_OF_THREADS: Final = ("error", "interrupted")
_OWNED: Final = {"partialFilterExpression": {"owner": {"$gt": ""}}}
_EXPIRING: Final = {"partialFilterExpression": {"pruned": False, "ttl.ttl": {"$gt": 0}}}


def _rare(statuses: Sequence[str], time: str) -> IndexModel:
    """The index of the rows that have one of these statuses."""
    keys = [("status", ASCENDING), (time, ASCENDING), ("_id", ASCENDING)]
    return IndexModel(keys, name="rare", partialFilterExpression={"status": {"$in": [*statuses]}})


INDEXES: Final[dict[str, list[IndexModel]]] = {
    THREADS: [
        IndexModel([("updated_at", ASCENDING), ("_id", ASCENDING)], name="updated"),
        IndexModel([("created_at", ASCENDING), ("_id", ASCENDING)], name="created"),
        IndexModel([("owner", ASCENDING), ("updated_at", ASCENDING), ("_id", ASCENDING)], name="of_owner", **_OWNED),
        _rare(_RARE_OF_THREADS, "updated_at"),
        IndexModel([("metadata.key", ASCENDING), ("metadata.equals", ASCENDING)], name="metadata", sparse=True),
        IndexModel([("ttl.ttl", ASCENDING), ("updated_at", ASCENDING)], name="expiring", **_EXPIRING),
    ],
    RUNS: [
        IndexModel([("thread_id", ASCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)], name="of_thread"),
        IndexModel([("created_at", ASCENDING), ("_id", ASCENDING)], name="created"),
        IndexModel([("owner", ASCENDING), ("created_at", ASCENDING), ("_id", ASCENDING)], name="of_owner", **_OWNED),
        _rare(RARE_OF_RUNS, "created_at"),
        IndexModel([("metadata.key", ASCENDING), ("metadata.equals", ASCENDING)], name="metadata", sparse=True),
        IndexModel([("created_at", ASCENDING), ("_id", ASCENDING)], name="active", **_ACTIVE),
        IndexModel([("thread_id", ASCENDING)], name="active_of_thread", **_ACTIVE),
        IndexModel([("worker_id", ASCENDING)], name="active_of_worker", **_ACTIVE),
    ],
    WORKERS: [IndexModel([("lost_at", ASCENDING)], name="lost")],
    SWEEPS: [IndexModel([("expires_at", ASCENDING)], name="expires")],
}


MIGRATIONS: Final[tuple[tuple[Command, ...], ...]] = (
    tuple({"createIndexes": name, "indexes": [one.document for one in indexes]} for name, indexes in INDEXES.items()),
)
"""For each version, in order, the database commands that make it.

MongoDB has no transaction around them. So each is recorded when it is done, and each must be harmless when it is
repeated, also late: a process that was slow may send it again after others have gone on.
"""

COMPATIBLE_FROM: Final[tuple[int, ...]] = (1,)
"""For each version the oldest one whose code can use it: the one before, and so on, if it only adds something."""

LANGGRAPHS: Final[dict[str, IndexModel]] = {
    "checkpoints": IndexModel(
        [("thread_id", ASCENDING), ("checkpoint_ns", ASCENDING), ("checkpoint_id", DESCENDING)], unique=True
    ),
    "checkpoint_writes": IndexModel(
        [
            ("thread_id", ASCENDING),
            ("checkpoint_ns", ASCENDING),
            ("checkpoint_id", DESCENDING),
            ("task_id", ASCENDING),
            ("idx", ASCENDING),
        ],
        unique=True,
    ),
}
"""What LangGraph's saver makes whenever it is made itself; here to be shown."""

_UNAUTHORIZED: Final = 13
_CANNOT_CREATE_INDEX: Final = 67
_CLAIM_MILLISECONDS: Final = 500
_NOTHING: Final = {"version": 0, "step": 0, "compatible_from": 0}


async def create(metadata: Database, checkpoints: Database) -> None:
    """Make what is missing of skeino's. Safe with many processes at once, and when one of them dies on the way.

    Raises:
        SchemaError: the database's schema is newer than this code, the user may not make what is missing, or the
            server refuses an index.
    """
    state = await read_state(metadata, checkpoints)
    lost = [name for name in state.missing if name in _OURS]
    if state.is_complete() or (state.version >= state.known and not lost):
        return
    try:
        if state.version and lost:  # somebody dropped them: what was made once is made again
            for command in (command for commands in MIGRATIONS for command in commands):
                await _run(metadata, command)
        await _migrate(metadata)
    except OperationFailure as exc:
        if exc.code == _CANNOT_CREATE_INDEX:
            raise SchemaError(
                "MongoDB refuses an index that MongoDB 6.0 has: is its featureCompatibilityVersion still an older one?"
            ) from None
        if exc.code != _UNAUTHORIZED:
            raise
        raise SchemaError(
            f"The user may not make the collections and indexes that the database lacks: run {APPLY} as a user with "
            f"readWrite, or with mongosh the commands that {PRINT} shows."
        ) from None


async def verify(metadata: Database, checkpoints: Database) -> None:
    """Check that everything is there, LangGraph's collections too, which its saver would make.

    Raises:
        SchemaError: a collection is missing, or the schema is of another version.
    """
    (await read_state(metadata, checkpoints)).verify()


async def read_state(metadata: Database, checkpoints: Database) -> SchemaState:
    """What the database has."""
    document = await metadata[SCHEMA].find_one({"_id": "schema"}) or _NOTHING
    ours = await metadata.list_collection_names()
    langgraphs = ours if checkpoints.name == metadata.name else await checkpoints.list_collection_names()
    missing = [name for name in _CHECKPOINTS if name not in langgraphs]
    missing += [name for name in _OURS if name not in ours]
    return SchemaState(
        known=len(MIGRATIONS),
        version=document["version"],
        compatible_from=document["compatible_from"],
        missing=tuple(missing),
        parts="the collections",
        who=", as a user who may make them",
    )


async def _migrate(metadata: Database) -> None:
    """Do one command after the other, and record it, beginning with the first that nobody has recorded."""
    schema = metadata[SCHEMA]
    with suppress(DuplicateKeyError):  # another process was faster
        await schema.update_one({"_id": "schema"}, {"$setOnInsert": _NOTHING}, upsert=True)
    while True:
        found = await schema.find_one({"_id": "schema"}) or _NOTHING
        version, step = found["version"], found["step"]
        if version >= len(MIGRATIONS):
            return
        if not await _claim(metadata, version, step):
            await asyncio.sleep(random.uniform(0.05, 0.15))
            continue
        if step == 0:
            logger.info("MongoDB: making schema version %d.", version + 1)
        commands = MIGRATIONS[version]
        if step < len(commands):
            await _run(metadata, commands[step])
        is_last = step + 1 >= len(commands)
        done = {"version": version + 1, "step": 0} if is_last else {"step": step + 1}
        here = {"_id": "schema", "version": version, "step": step}
        await schema.update_one(here, {"$set": done, "$unset": {"claimed_until": ""}})


async def _claim(metadata: Database, version: int, step: int) -> bool:
    """Whether this process is to do the step. Another that claimed it, and may be dead, is waited for half a second.

    That spares the server the same work from all processes at once. It need not keep them apart: a command is harmless
    when it is repeated. Code that cannot use the version is told to keep away before anything is changed.
    """
    free = {"$expr": {"$lt": ["$claimed_until", "$$NOW"]}}  # what is not there is less than any date
    claimed = {
        "claimed_until": {"$add": ["$$NOW", _CLAIM_MILLISECONDS]},
        "compatible_from": {"$max": ["$compatible_from", COMPATIBLE_FROM[version]]},
    }
    here = {"_id": "schema", "version": version, "step": step}
    return (await metadata[SCHEMA].update_one({**here, **free}, [{"$set": claimed}])).modified_count == 1


async def _run(metadata: Database, command: Command) -> None:
    answer = await metadata.command({**command, "writeConcern": {"w": "majority"}})
    if answer.get("writeErrors") or answer.get("writeConcernError"):
        raise SchemaError(f"MongoDB did not carry out {next(iter(command))!r} of the schema's set-up: try again.")
