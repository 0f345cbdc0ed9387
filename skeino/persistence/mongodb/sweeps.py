"""`MongoSweeps`: what is due in a MongoDB database, and what is done about it.

Threads that are due are found by the index `expiring`, which is sorted by `ttl` and then by the last change: for each
length of life there is, which are few, those that are old enough. Times are by the server's clock.

All is done by the blocking client, whose saver knows how to read a history; a thread and its state are one transaction.
A server that stands alone has none. There the state goes first, and the thread last and only if no run was tied to it
meanwhile: who dies in between leaves a thread that is still due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from langgraph.checkpoint.base import BaseCheckpointSaver
from pymongo import ASCENDING
from pymongo.client_session import ClientSession
from pymongo.errors import DuplicateKeyError, OperationFailure

from skeino.errors import DeltaChannelError
from skeino.persistence.mongodb import history
from skeino.persistence.mongodb.connections import MongoDatabase
from skeino.persistence.mongodb.documents import Document, microseconds
from skeino.persistence.mongodb.schema import RUNS, SWEEPS, THREADS
from skeino.persistence.sweeping import SWEEP, Due, Expiry, Strategy, remove_state

Session = ClientSession | None

_NOW: Final = "$$NOW"
_BY_EXPIRY: Final = "expiring"
_MINUTE: Final = 60_000_000  # in microseconds
_MICROSECOND: Final = timedelta(microseconds=1)
_NEVER: Final = {"worker_id": "", **dict.fromkeys(("begun_at", "expires_at"), datetime(1970, 1, 1, tzinfo=UTC))}
_LEFT: Final[Document] = {"pruned": False, "ttl.ttl": {"$gt": 0}}
"""What the index is of."""


class MongoSweeps:
    """Sweeps in MongoDB; see `Sweeps` for what each operation promises."""

    def __init__(self, database: MongoDatabase) -> None:
        self._database = database
        metadata = database.metadata_of(database.blocking_client)
        self._threads, self._runs, self._sweeps = metadata[THREADS], metadata[RUNS], metadata[SWEEPS]

    async def begin(self, worker_id: str, *, seconds: float, interval: float) -> float:
        next_at = {"$add": ["$begun_at", round(1000 * interval)]}
        is_free = {"$and": [{"$lte": ["$expires_at", _NOW]}, {"$lte": [next_at, _NOW]}]}
        left = {"$max": [{"$subtract": ["$expires_at", _NOW]}, {"$subtract": [next_at, _NOW]}]}
        turn = {"worker_id": {"$literal": worker_id}, "begun_at": _NOW, "expires_at": _in(seconds)}

        def begin() -> float:
            with suppress(DuplicateKeyError):  # another process is the first
                self._sweeps.update_one({"_id": SWEEP}, {"$setOnInsert": _NEVER}, upsert=True)
            if self._sweeps.update_one({"_id": SWEEP, "$expr": is_free}, [{"$set": turn}]).matched_count:
                return 0.0
            found = self._sweeps.aggregate([{"$match": {"_id": SWEEP}}, {"$project": {"left": left}}])
            return max([0.1, *(float(one["left"]) / 1000 for one in found)])

        return await self._database.in_thread(begin)

    async def renew(self, worker_id: str, *, seconds: float) -> bool:
        mine, changes = {"_id": SWEEP, "worker_id": worker_id}, [{"$set": {"expires_at": _in(seconds)}}]
        return await self._database.in_thread(lambda: self._sweeps.update_one(mine, changes).matched_count > 0)

    async def end(self, worker_id: str) -> None:
        await self.renew(worker_id, seconds=0.0)

    async def count_due(self, run_retention: timedelta | None) -> Due:
        def count() -> Due:
            now = self._now()
            number = dict.fromkeys(("delete", "keep_latest"), 0)
            for condition in self._due(now):
                for strategy in number:
                    counted = {**condition, "ttl.strategy": strategy}
                    number[strategy] += self._threads.count_documents(counted, hint=_BY_EXPIRY)
            runs = 0 if run_retention is None else self._runs.count_documents(_finished(now, run_retention))
            return Due(number["delete"], number["keep_latest"], runs)

        return await self._database.in_thread(count)

    async def due_threads(
        self, *, strategies: Collection[Strategy], limit: int, leave_out: Collection[str] = ()
    ) -> list[str]:
        def find() -> list[str]:
            meant = {"ttl.strategy": {"$in": [*strategies]}, "_id": {"$nin": [*leave_out]}}
            found: list[str] = []
            for condition in self._due(self._now()):
                left = limit - len(found)
                threads = self._threads.find({**condition, **meant}, {"_id": 1}, limit=left, hint=_BY_EXPIRY)
                found += [thread["_id"] for thread in threads]
                if len(found) == limit:
                    break
            return found

        return await self._database.in_thread(find)

    async def expire_thread(self, thread_id: str, checkpointer: BaseCheckpointSaver[Any]) -> Expiry:
        removed: Expiry | None = None
        saver: Any = checkpointer
        if getattr(saver, "database", None) is not self._database:
            strategy = await self._database.in_thread(lambda: self._strategy_of(thread_id, None))
            if strategy is None:
                return "kept"
            removed, saver = await remove_state(checkpointer, thread_id, strategy), None
        done: Expiry = await self._database.in_thread(lambda: self._expired_unless_held(thread_id, saver))
        return removed if removed is not None and done == "pruned" else done

    async def delete_finished_runs(self, older_than: timedelta, *, limit: int) -> int:
        def delete() -> int:
            condition = _finished(self._now(), older_than)
            order = [("created_at", ASCENDING), ("_id", ASCENDING)]
            found = [run["_id"] for run in self._runs.find(condition, {"_id": 1}, sort=order, limit=limit)]
            return self._runs.delete_many({"_id": {"$in": found}, "active": False}).deleted_count if found else 0

        return await self._database.in_thread(delete)

    # ── In a thread ──────────────────────────────────────────────────────────────────────────────────────

    def _now(self) -> int:
        """By the server's clock, in microseconds."""
        now: datetime = self._database.blocking_client.admin.command("hello")["localTime"]
        return microseconds(now if now.tzinfo is not None else now.replace(tzinfo=UTC))

    def _due(self, now: int) -> Iterator[Document]:
        """For each length of life there is, from the shortest on, a condition for the threads whose time is up."""
        longest = 0.0
        while True:
            longer = {**_LEFT, "ttl.ttl": {"$gt": longest}}
            found = self._threads.find_one(longer, {"ttl": 1}, sort=[("ttl.ttl", ASCENDING)], hint=_BY_EXPIRY)
            if found is None:
                return
            longest = found["ttl"]["ttl"]
            yield {"pruned": False, "ttl.ttl": longest, "updated_at": {"$lt": now - round(_MINUTE * longest)}}

    def _strategy_of(self, thread_id: str, session: Session) -> Strategy | None:
        """What is to be done with the thread; None if its time is not up, or a run is active on it."""
        thread = self._threads.find_one({"_id": thread_id, **_LEFT}, session=session)
        if thread is None or thread["updated_at"] >= self._now() - round(_MINUTE * thread["ttl"]["ttl"]):
            return None
        if self._runs.find_one({"thread_id": thread_id, "active": True}, {"_id": 1}, session=session) is not None:
            return None
        strategy: Strategy = thread["ttl"]["strategy"]
        return strategy

    def _expired_unless_held(self, thread_id: str, saver: Any) -> Expiry:
        """In one transaction, where there are any; a thread that another has just now is in use, and kept."""
        if not self._database.transactions:
            return self._expired(thread_id, saver, None)
        client, concerns = self._database.blocking_client, self._database.concerns
        try:
            with client.start_session() as session, session.start_transaction(**concerns):
                return self._expired(thread_id, saver, session)
        except OperationFailure as exc:
            if not exc.has_error_label("TransientTransactionError"):
                raise
            return "kept"

    def _expired(self, thread_id: str, saver: Any, session: Session) -> Expiry:
        """Do what is due; with a saver, to its state as well. Runs that start meanwhile collide over the thread."""
        ties = (self._threads.find_one({"_id": thread_id}, {"ties": 1}, session=session) or {}).get("ties")
        unchanged = {"_id": thread_id, "ties": ties}
        strategy = self._strategy_of(thread_id, session)
        if strategy is None:
            return "kept"
        expiry: Expiry = "deleted" if strategy == "delete" else "pruned"
        if saver is not None:
            try:
                history.prune_within(saver, [thread_id], strategy, session)
            except DeltaChannelError:  # before anything was deleted
                expiry = "unprunable"
        if expiry != "deleted":
            done = self._threads.update_one(unchanged, {"$set": {"pruned": True}}, session=session).matched_count
            return expiry if done else "kept"
        self._runs.delete_many({"thread_id": thread_id, "active": False}, session=session)
        return expiry if self._threads.delete_one(unchanged, session=session).deleted_count else "kept"


def _in(seconds: float) -> Document:
    return {"$add": [_NOW, round(1000 * seconds)]}


def _finished(now: int, older_than: timedelta) -> Document:
    """A run is not older than its end: so the index by `created_at` finds those that ended long ago."""
    before = now - older_than // _MICROSECOND
    return {"created_at": {"$lt": before}, "finished_at": {"$lt": before}, "active": False}
