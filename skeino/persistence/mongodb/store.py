"""`MongoMetadataStore`: threads and runs in the collections `app_threads` and `app_runs`.

What changes a thread and a run is one transaction, on a replica set or a sharded cluster; the starts and ends of runs,
and the claims and releases of their threads, share it where they come at once (`RunWrites`). Whatever ties a run to a
thread also counts up the thread's `ties`: that is the document in which it collides with a deletion. A server that
stands alone has no transactions: there the steps are in an order that leaves no run without its thread, and the thread
is looked at once more at the end.

A thread's `busy` is not stored: it is derived from the active runs, so nothing has to be put right when a process dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, Unpack

from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import DuplicateKeyError

from skeino.errors import RunNotFoundError, StoreError, ThreadBusyError, ThreadExistsError, ThreadNotFoundError
from skeino.persistence.answers import made_of
from skeino.persistence.claims import Queue
from skeino.persistence.mongodb.batches import Attachment, End, Release, Start
from skeino.persistence.mongodb.connections import MongoDatabase
from skeino.persistence.mongodb.documents import (
    WITH_ACTIVE_RUN,
    Document,
    error_text,
    json_text,
    microseconds,
    one,
    order,
    run_document,
    run_filter,
    run_of,
    thread_document,
    thread_of,
    thread_pipeline,
    update,
)
from skeino.persistence.mongodb.leases import MongoLeases
from skeino.persistence.mongodb.run_writes import Collection, RunWrites, Session, refuse_other_owner, settle
from skeino.persistence.mongodb.schema import RUNS, THREADS
from skeino.persistence.mongodb.sweeps import MongoSweeps
from skeino.persistence.protocol import NewThread, RunSearch, RunStart, ThreadSearch
from skeino.persistence.queries import (
    checked_error,
    checked_finish,
    checked_if_exists,
    checked_ttl_change,
    late_outcome_of,
    new_run,
    new_thread,
    run_query,
    thread_query,
)
from skeino.persistence.restoring import owners_of_threads, restored_runs, restored_threads
from skeino.persistence.rows import (
    ANY_OWNER,
    OwnerFilter,
    RunError,
    RunFinish,
    RunRow,
    ThreadRow,
    ThreadTTL,
)
from skeino.validation import (
    validate_id,
    validate_json_object,
    validate_optional_json_object,
    validate_run_id,
    validate_thread_id,
)

_ATTEMPTS = 20

LOOKED_AHEAD: Final = (10, 1_000, None)
"""At how many threads a search by status looks beyond its page, for some of them are busy, or are no longer; at more,
where too few are left for the page."""


class MongoMetadataStore:
    """Threads and runs in MongoDB; see `MetadataStoreProtocol` for what each operation promises."""

    def __init__(self, database: MongoDatabase, thread_ttl: ThreadTTL | None = None) -> None:
        self._database = database
        self._thread_ttl = thread_ttl
        self._threads = database.metadata[THREADS]
        self._runs = database.metadata[RUNS]
        self._run_writes = RunWrites(database, self._threads, self._runs)
        self._keeping: set[asyncio.Task[bool]] = set()  # the event loop does not hold them

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    async def start_run(self, run_id: str, *, worker_id: str, **start: Unpack[RunStart]) -> None:
        run = new_run(run_id, worker_id, start)
        document, thread_id, thread = run_document(run), run["thread_id"], None
        if thread_id is not None and start.get("create_thread", True):
            new = new_thread(thread_id, {"owner": run["owner"]}, run["created_at"], default_ttl=self._thread_ttl)
            thread = thread_document(new)
        else:
            document["thread_id"] = None
        await self._run_writes.write(Start(document, thread_id, thread))

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        thread = thread_document(new_thread(thread_id, {"owner": owner}, default_ttl=self._thread_ttl))
        await self._run_writes.write(Attachment(validate_run_id(run_id), thread))

    # ── Who writes to a thread ───────────────────────────────────────────────────────────────────────────

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        thread = thread_document(new_thread(thread_id, {"owner": owner}, default_ttl=self._thread_ttl))
        fence: int | None = await self._run_writes.write(Attachment(validate_run_id(run_id), thread, claims=True))
        return fence

    async def get_queue(self, thread_id: str) -> Queue | None:
        async with self._database.operation():
            thread = await self._threads.find_one({"_id": validate_thread_id(thread_id)}, {"queue": 1})
            if thread is None:
                return None
            queued = thread["queue"]  # whose runs had their documents before they came here
            active = {"_id": {"$in": queued}, "active": True}
            runs = await self._runs.find(active, {"_id": 1}).to_list() if queued else []
        return Queue(tuple(queued), frozenset(run["_id"] for run in runs))

    async def change_queue(
        self, thread_id: str, seen: Sequence[str], wanted: Sequence[str], *, takes: bool
    ) -> int | None:
        as_seen = {"_id": validate_thread_id(thread_id), "queue": [validate_run_id(run_id) for run_id in seen]}
        changes: dict[str, Any] = {"$set": {"queue": [validate_run_id(run_id) for run_id in wanted]}}
        if takes:
            changes["$inc"] = {"fence": 1}
        async with self._database.operation():
            thread = await self._threads.find_one_and_update(
                as_seen, changes, projection=["fence"], return_document=ReturnDocument.AFTER
            )
        return None if thread is None else int(thread["fence"])

    def release_thread(self, run_id: str, thread_id: str) -> Awaitable[None]:
        return self._run_writes.enqueue(Release(validate_run_id(run_id), validate_thread_id(thread_id)))

    # ── A run's end ──────────────────────────────────────────────────────────────────────────────────────

    def finish_run(self, finish: RunFinish) -> Awaitable[bool]:
        checked = checked_finish(finish)

        def ended(in_time: bool) -> bool | asyncio.Task[bool]:
            if in_time:
                return True
            task = asyncio.create_task(self._keep_aside(checked), name="skeino end of run")
            self._keeping.add(task)
            task.add_done_callback(self._keeping.discard)
            return task

        return made_of(self._run_writes.enqueue(End(checked)), ended)

    async def _keep_aside(self, finish: RunFinish) -> bool:
        """Keep an end that came too late: it has not ended the run, which is what this returns."""
        run = {"_id": finish["run_id"], "worker_id": finish["worker_id"], "active": False, "late_outcome": None}
        async with self._database.operation():
            await self._runs.update_one(run, {"$set": {"late_outcome": json_text(late_outcome_of(finish))}})
        return False

    async def close(self) -> None:
        """Write what is still to be written of runs' lives, and take no more."""
        await self._run_writes.close()
        while self._keeping:
            await asyncio.wait(self._keeping)

    def open_leases(self, limit: float) -> MongoLeases:
        return MongoLeases(self._database, limit)

    def sweeps(self) -> MongoSweeps:
        return MongoSweeps(self._database)

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        validate_id(worker_id, "worker_id")
        text, now = error_text(checked_error(error)), datetime.now(UTC)
        changes = {"status": "interrupted", "active": False, "finished_at": microseconds(now), "error": text}

        async def interrupt(session: Session) -> int:
            mine = {"worker_id": worker_id, "active": True}
            runs = await self._runs.find(mine, {"thread_id": 1}, session=session).to_list()
            if not runs:
                return 0
            ids = [run["_id"] for run in runs]
            ended = await self._runs.update_many({**mine, "_id": {"$in": ids}}, {"$set": changes}, session=session)
            threads = sorted({run["thread_id"] for run in runs} - {None})
            await settle(self._threads, {"_id": {"$in": threads}}, "interrupted", now, session)
            return ended.modified_count

        return await self._database.transact(interrupt)

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        condition = one(validate_run_id(run_id), owner)
        async with self._database.operation():
            document = await self._runs.find_one(condition)
        return None if document is None else run_of(document)

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        query = run_query(search)
        async with self._database.operation():
            found = self._runs.find(run_filter(query), sort=order(query), skip=query.offset, limit=query.limit)
            return [run_of(document) for document in await found.allow_disk_use(True).to_list()]

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        condition = one(validate_run_id(run_id), owner)
        changes = update({}, metadata=validate_json_object(metadata, "metadata"))
        async with self._database.operation():
            if not changes[0]["$set"]:  # MongoDB refuses to set nothing
                document = await self._runs.find_one(condition)
            else:
                document = await self._runs.find_one_and_update(
                    condition, changes, return_document=ReturnDocument.AFTER
                )
        if document is None:
            raise RunNotFoundError(f"There is no run {run_id}.")
        return run_of(document)

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    async def create_thread(
        self, thread_id: str, *, if_exists: Literal["raise", "do_nothing"] = "raise", **thread: Unpack[NewThread]
    ) -> ThreadRow:
        checked_if_exists(if_exists)
        row = new_thread(thread_id, thread, default_ttl=self._thread_ttl)
        async with self._database.operation():
            for _ in range(_ATTEMPTS):
                try:
                    await self._threads.insert_one(thread_document(row))
                except DuplicateKeyError:
                    if if_exists == "raise":
                        raise ThreadExistsError(f"There is a thread {thread_id!r} already.") from None
                    await refuse_other_owner(self._threads, thread_id, row["owner"])
                    existing = await self._read_thread({"_id": thread_id})
                    if existing is not None:
                        return existing
                else:
                    return row
        raise StoreError(f"The thread {thread_id!r} comes and goes: it could not be made.")

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        condition = one(validate_thread_id(thread_id), owner)
        async with self._database.operation():
            return await self._read_thread(condition)

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        query = thread_query(search)
        statuses = query.statuses
        found: list[Document] = []
        async with self._database.operation():
            busy = await self._busy() if statuses is not None and "busy" in statuses else []
            for ahead in LOOKED_AHEAD if statuses is not None else (None,):
                pipeline = thread_pipeline(query, busy, ahead=ahead)
                found = await self._database.aggregate(self._threads, pipeline, allowDiskUse=True)
                seen_all = statuses == ("busy",) and len(busy) <= query.offset + query.limit + (ahead or 0)
                if len(found) == query.limit or seen_all:
                    break
        return [thread_of(document, busy=bool(document["active"])) for document in found]

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        condition = one(validate_thread_id(thread_id), owner)
        merged = validate_optional_json_object(metadata, "metadata")
        changes: dict[str, Any] = {"updated_at": microseconds(datetime.now(UTC)), "pruned": False}
        if config is not None:
            changes["config"] = json_text(validate_json_object(config, "config"))
        if (new_ttl := checked_ttl_change(ttl)) != "keep":
            changes["ttl"] = new_ttl
        async with self._database.operation():
            document = await self._threads.find_one_and_update(
                condition, update(changes, metadata=merged), return_document=ReturnDocument.AFTER
            )
            if document is None:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            busy = await self._runs.find_one({"thread_id": thread_id, "active": True}, {"_id": 1})
        return thread_of(document, busy=busy is not None)

    async def delete_thread(
        self,
        thread_id: str,
        *,
        force: bool = False,
        owner: OwnerFilter = ANY_OWNER,
        ignore_run: str | None = None,
    ) -> None:
        condition = one(validate_thread_id(thread_id), owner)
        asking = None if ignore_run is None else validate_run_id(ignore_run)
        others = {"thread_id": thread_id, "_id": {"$ne": asking}}

        async def delete(session: Session) -> None:
            if await self._threads.find_one(condition, {"_id": 1}, session=session) is None:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            if not force and await self._runs.find_one({**others, "active": True}, {"_id": 1}, session=session):
                raise ThreadBusyError(f"The thread {thread_id!r} has an active run: wait for it, or use force=True.")
            # Runs first: if the process dies in between, the thread still shows that there is something to delete.
            await self._runs.delete_many(others, session=session)
            if asking is not None:
                tied = {"_id": asking, "thread_id": thread_id}
                await self._runs.update_one(tied, {"$set": {"thread_id": None}}, session=session)
            await self._threads.delete_one({"_id": thread_id}, session=session)
            if session is None:  # a run may have been tied to it meanwhile
                await self._runs.delete_many(others)

        await self._database.transact(delete)

    # ── Rows put back as they were ───────────────────────────────────────────────────────────────────────

    async def restore_threads(self, rows: Sequence[ThreadRow]) -> int:
        documents = [thread_document(row) for row in restored_threads(rows)]
        return await self._database.transact(lambda session: _insert_new(self._threads, documents, session))

    async def restore_runs(self, rows: Sequence[RunRow]) -> int:
        runs = restored_runs(rows)
        needed = owners_of_threads(runs)
        ids = sorted({thread_id for thread_id, _ in needed})
        documents = [run_document(run) for run in runs]

        async def restore(session: Session) -> int:
            found = await self._threads.find({"_id": {"$in": ids}}, {"owner": 1}, session=session).to_list()
            present = {(thread["_id"], thread["owner"]) for thread in found}
            for thread_id, _ in needed - present:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            if ids:
                await self._threads.update_many({"_id": {"$in": ids}}, {"$inc": {"ties": 1}}, session=session)
            return await _insert_new(self._runs, documents, session)

        return await self._database.transact(restore)

    # ── Helpers ──────────────────────────────────────────────────────────────────────────────────────────

    async def _busy(self) -> list[str]:
        """The threads that have active runs."""
        runs = await self._runs.find({"active": True, "thread_id": {"$gt": ""}}, {"_id": 0, "thread_id": 1}).to_list()
        return sorted({run["thread_id"] for run in runs})

    async def _read_thread(self, condition: dict[str, Any]) -> ThreadRow | None:
        found = await self._database.aggregate(self._threads, [{"$match": condition}, WITH_ACTIVE_RUN])
        return thread_of(found[0], busy=bool(found[0]["active"])) if found else None


async def _insert_new(collection: Collection, documents: Sequence[dict[str, Any]], session: Session) -> int:
    """Insert the documents whose id is not there; returns how many.

    The others are left out beforehand, for a duplicate would undo the whole transaction. Upserts and not plain
    inserts, so that whoever comes first meanwhile wins, also where there are no transactions.
    """
    ids = [document["_id"] for document in documents]
    there = {
        found["_id"] for found in await collection.find({"_id": {"$in": ids}}, {"_id": 1}, session=session).to_list()
    }
    missing = [
        UpdateOne({"_id": document["_id"]}, {"$setOnInsert": document}, upsert=True)
        for document in documents
        if document["_id"] not in there
    ]
    if not missing:
        return 0
    return (await collection.bulk_write(missing, session=session)).upserted_count
