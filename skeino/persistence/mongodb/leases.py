"""`MongoLeases`: the collection `app_workers`, over a client of its own.

Times are the server's `$$NOW`, of which a statement has one. A run and its thread change in one transaction, many runs
at once; if one of the documents is another's just now, each run goes alone, and what is held is left for the next time.

A transaction that a dead process has left open holds its documents for another minute (the server's
`transactionLifetimeLimitSeconds`): nobody could end those runs, or use their threads. So it is aborted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Final

import pymongo
from pymongo import ReturnDocument
from pymongo.client_session import ClientSession
from pymongo.errors import OperationFailure
from pymongo.synchronous.database import Database

from skeino.persistence.claims import Queue
from skeino.persistence.leases import END_UNKNOWN, KEPT, PATIENCE, WORKER_LOST
from skeino.persistence.mongodb.clients import APP_NAME, LEASES_APP_NAME
from skeino.persistence.mongodb.connections import MongoDatabase
from skeino.persistence.mongodb.documents import Document, error_text
from skeino.persistence.mongodb.failures import translated_errors
from skeino.persistence.mongodb.schema import RUNS, THREADS, WORKERS
from skeino.persistence.rows import RunError

ABANDONED: Final = timedelta(seconds=1)
MICROSECOND: Final = timedelta(microseconds=1)
NOW: Final = "$$NOW"
NOW_IN_MICROSECONDS: Final = {"$multiply": [{"$toLong": NOW}, 1000]}


class MongoLeases:
    """Leases in MongoDB; see `Leases` for what each call promises.

    Args:
        database: where they are kept.
        limit: seconds that one call may take.
    """

    def __init__(self, database: MongoDatabase, limit: float) -> None:
        self._place = database.place
        self._transactions = database.transactions
        self._limit = limit
        self._client, self._is_ours = database.client_for_leases(limit)
        self._concerns = database.concerns
        metadata: Database[Document] = database.metadata_of(self._client)
        self._workers, self._runs, self._threads = metadata[WORKERS], metadata[RUNS], metadata[THREADS]

    def acquire(self, worker_id: str, seconds: float) -> datetime:
        return _expiry(self._extended(worker_id, seconds, {"started_at": {"$ifNull": ["$started_at", NOW]}}, new=True))

    def renew(self, worker_id: str, seconds: float) -> datetime | None:
        lease = self._extended(worker_id, seconds, {}, new=False)
        return None if lease is None else _expiry(lease)

    def release(self, worker_id: str) -> None:
        with self._in_time():
            if self._runs.find_one({"worker_id": worker_id, "active": True}, {"_id": 1}):
                self._workers.update_one({"_id": worker_id}, [{"$set": {"expires_at": NOW}}])
            else:
                self._workers.delete_one({"_id": worker_id, "lost_at": None})

    def declare_lost(self, steady_for: float) -> list[str]:
        is_late = {
            "$and": [
                {"$lt": ["$expires_at", NOW]},
                {"$lt": [{"$multiply": [PATIENCE, "$seconds"]}, steady_for]},
            ]
        }
        declared = []
        with self._in_time():
            late = {"lost_at": None, "$expr": is_late}
            for lease in self._workers.find(late, {"_id": 1}):
                one = {**late, "_id": lease["_id"]}
                if self._workers.update_one(one, [{"$set": {"lost_at": NOW}}]).modified_count:
                    declared.append(lease["_id"])
            if declared:
                self._abort_abandoned()
        return declared

    def end_runs_of_lost(self, limit: int) -> int:
        with self._in_time():
            lost = [lease["_id"] for lease in self._workers.find({"lost_at": {"$ne": None}}, {"_id": 1})]
            if not lost:
                return 0
            doomed = {"worker_id": {"$in": lost}, "active": True}
            runs = [run["_id"] for run in self._runs.find(doomed, {"_id": 1}, limit=limit)]
            if not runs:
                self._forget(lost)
            return self._end(runs, doomed, WORKER_LOST)

    def active_runs(self, worker_id: str, *, older_than: float, limit: int) -> list[str]:
        started_before = {"$subtract": [NOW_IN_MICROSECONDS, round(1_000_000 * older_than)]}
        condition = {"worker_id": worker_id, "active": True, "$expr": {"$lt": ["$started_at", started_before]}}
        with self._in_time():
            return [run["_id"] for run in self._runs.find(condition, {"_id": 1}, limit=limit)]

    def end_runs(self, worker_id: str, run_ids: Collection[str]) -> int:
        with self._in_time():
            return self._end(list(run_ids), {"worker_id": worker_id, "active": True}, END_UNKNOWN)

    def close(self) -> None:
        if self._is_ours:
            self._client.close()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        with translated_errors(self._place), pymongo.timeout(self._limit):
            yield

    def _extended(self, worker_id: str, seconds: float, more: Document, *, new: bool) -> Document | None:
        """The lease, good from now on; None if it is lost, or there is none and it should not be new."""
        expires_at = {"$add": [NOW, round(1000 * seconds)]}
        changes = {**more, "expires_at": expires_at, "seconds": seconds, "lost_at": None}
        with self._in_time():
            return self._workers.find_one_and_update(
                {"_id": worker_id, "lost_at": None},
                [{"$set": changes}],
                projection=["expires_at"],
                upsert=new,
                return_document=ReturnDocument.AFTER,
            )

    def _forget(self, lost: Sequence[str]) -> None:
        """Of workers without active runs."""
        long_ago = {"$lt": ["$lost_at", {"$subtract": [NOW, round(KEPT / timedelta(milliseconds=1))]}]}
        self._workers.delete_many({"_id": {"$in": list(lost)}, "lost_at": {"$ne": None}, "$expr": long_ago})

    def _end(self, runs: Sequence[str], doomed: Document, error: RunError) -> int:
        if not self._transactions:
            return sum(self._end_one(run_id, doomed, error) for run_id in runs)
        ended = self._end_unless_held(runs, doomed, error) if runs else 0
        if ended is not None:
            return ended
        self._abort_abandoned()
        # Whoever holds some of them may be at the same: in another order they get into each other's way less.
        number, enough = 0, time.monotonic() + self._limit / 2
        for run_id in random.sample(runs, len(runs)):
            number += self._end_unless_held([run_id], doomed, error) or 0
            if time.monotonic() > enough:
                break
        return number

    def _end_unless_held(self, runs: Sequence[str], doomed: Document, error: RunError) -> int | None:
        """How many have ended, in one transaction; None if another has one of the documents: then none has."""
        try:
            with self._client.start_session() as session, session.start_transaction(**self._concerns):
                return self._end_together(runs, doomed, error, session)
        except OperationFailure as exc:
            if not exc.has_error_label("TransientTransactionError"):
                raise
            return None

    def _abort_abandoned(self) -> None:
        """Abort transactions of skeino's clients in which nothing has happened for long, which is no living one's way.

        One that belongs to a process which only stood still is begun again when that goes on.
        """
        ours = {"$in": [APP_NAME, LEASES_APP_NAME]}
        abandoned = {"appName": ours, "transaction.timeInactiveMicros": {"$gt": ABANDONED / MICROSECOND}}
        try:
            sessions = self._client.admin.aggregate([{"$currentOp": {"idleSessions": True}}, {"$match": abandoned}])
            if ids := [{"id": session["lsid"]["id"]} for session in sessions]:
                self._client.admin.command("killSessions", ids)
        except OperationFailure:  # it may not: then the server does it, later
            pass

    def _end_together(self, runs: Sequence[str], doomed: Document, error: RunError, session: ClientSession) -> int:
        condition = {**doomed, "_id": {"$in": list(runs)}}
        found = list(self._runs.find(condition, {"thread_id": 1}, session=session))
        if not found:
            return 0
        condition["_id"] = {"$in": [run["_id"] for run in found]}
        ended = self._runs.update_many(condition, _ending(error), session=session)
        threads = sorted({run["thread_id"] for run in found} - {None})
        self._threads.update_many({"_id": {"$in": threads}}, _SETTLING, session=session)
        self._fence_off(threads, {run["_id"] for run in found}, session)
        return ended.modified_count

    def _end_one(self, run_id: str, doomed: Document, error: RunError) -> int:
        """Where there are no transactions."""
        run = self._runs.find_one_and_update({**doomed, "_id": run_id}, _ending(error), projection=["thread_id"])
        if run is not None and run["thread_id"] is not None:
            self._threads.update_one({"_id": run["thread_id"]}, _SETTLING)
            self._fence_off([run["thread_id"]], {run_id}, None)
        return int(run is not None)

    def _fence_off(self, threads: Sequence[str], ended: set[str], session: ClientSession | None) -> None:
        """Let what the runs that have ended still write be refused, on threads that no other run holds."""
        found = list(self._threads.find({"_id": {"$in": list(threads)}}, {"queue": 1}, session=session))
        queued = {run_id for thread in found for run_id in thread["queue"]}
        active = {"_id": {"$in": list(queued)}, "active": True}
        alive = frozenset(run["_id"] for run in self._runs.find(active, {"_id": 1}, session=session)) if queued else ()
        free = [
            thread["_id"] for thread in found if Queue(tuple(thread["queue"]), frozenset(alive)).may_be_held_by(ended)
        ]
        if free:
            self._threads.update_many({"_id": {"$in": free}}, {"$inc": {"fence": 1}}, session=session)


_SETTLING: Final = [
    {"$set": {"status": "error", "pruned": False, "updated_at": {"$max": ["$updated_at", NOW_IN_MICROSECONDS]}}}
]


def _ending(error: RunError) -> list[Document]:
    text = {"$literal": error_text(error)}
    return [{"$set": {"status": "error", "active": False, "finished_at": NOW_IN_MICROSECONDS, "error": text}}]


def _expiry(lease: Document | None) -> datetime:
    assert lease is not None  # it is made if there is none
    expires_at: datetime = lease["expires_at"]
    return expires_at if expires_at.tzinfo is not None else expires_at.replace(tzinfo=UTC)
