"""`RunWrites`: starts, claims, releases and ends of runs, written together where several come at once.

A batch is one transaction: it reads the threads and runs that its writes name, and then changes all of them with a few
bulk operations. A write that comes alone is written alone. Either is tried a few times only, for one document that
somebody else holds must not keep all the others waiting: after that each write of the batch goes its own way, beside
the writer, and what comes later on its run or its thread goes after it.

A server that stands alone has no transactions. There nothing is shared, and the steps of each write are in an order
that leaves no run without its thread; the thread is looked at once more at the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

from pymongo import ReturnDocument
from pymongo.asynchronous.client_session import AsyncClientSession
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from skeino.errors import InvalidInputError, StoreError, StoreUnavailableError, ThreadNotFoundError
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.group_commit import TaskCommit
from skeino.persistence.mongodb.batches import (
    RUN_FIELDS,
    THREAD_FIELDS,
    Attachment,
    Batch,
    End,
    Release,
    Start,
    Write,
)
from skeino.persistence.mongodb.connections import ContendedError, MongoDatabase
from skeino.persistence.mongodb.documents import Document, microseconds
from skeino.persistence.rows import SettledStatus

T = TypeVar("T")
Session = AsyncClientSession | None
Collection = AsyncCollection[Document]

_TOGETHER: Final = 5
"""Attempts at a transaction of the writer's."""

_PATIENCE: Final = 1.0
"""Seconds after which the writer goes on with the next batch. A commit whose server has gone is tried again for as long
as an operation may take; what comes meanwhile must be told at once that there is no server."""


class RunWrites:
    """The one writer of a process to these two collections, as far as the life of a run goes."""

    def __init__(self, database: MongoDatabase, threads: Collection, runs: Collection) -> None:
        self._database = database
        self._threads = threads
        self._runs = runs
        self._group: TaskCommit[Write] = TaskCommit(
            self._write_batch, f"MongoDB at {database.place}", patience=database.operation_timeout
        )
        self._apart: set[asyncio.Task[Any]] = set()
        self._last: dict[tuple[str, str], asyncio.Task[Any]] = {}  # what is beside the writer, by run and by thread

    async def write(self, write: Write) -> Any:
        """Write it, and return its answer once it is durable. A caller that is cancelled waits for the end.

        Raises:
            ThreadNotFoundError: the thread belongs to another owner. Nothing was written.
            StoreError: as `MongoDatabase.operation`.
        """
        return await to_its_end(self.enqueue(write))

    def enqueue(self, write: Write) -> asyncio.Future[Any]:
        """As `write`, whose answer is the future's result. The write is in its place when this returns."""
        if self._database.transactions:
            return self._group.enqueue(write)
        return asyncio.shield(self._beside(self._alone(write)))  # cancelled between its steps, it would stay half done

    async def close(self) -> None:
        """Take no more writes, and wait until those there are have been answered."""
        await self._group.close()
        while self._apart:  # one may leave others
            await asyncio.wait(self._apart)

    # ── Together ─────────────────────────────────────────────────────────────────────────────────────────

    async def _write_batch(self, writes: Sequence[Write]) -> Sequence[Any]:
        """An answer for each: its result, the exception it has earned, or the task that goes on with it."""
        held_up = self._held_up(writes)
        free = [position for position in range(len(writes)) if not held_up[position]]
        answers = dict(zip(free, await self._written([writes[position] for position in free]), strict=True))
        return [
            self._after_others(write) if held_up[position] else answers[position]
            for position, write in enumerate(writes)
        ]

    def _held_up(self, writes: Sequence[Write]) -> Sequence[bool]:
        """For each whether another one on its run or its thread is beside the writer, and has to come first."""
        names = {*self._last}
        found = []
        for write in writes:
            found.append(not names.isdisjoint(_names(write)))
            if found[-1]:
                names.update(_names(write))
        return found

    async def _written(self, writes: Sequence[Write]) -> Sequence[Any]:
        if not writes:
            return []
        batch = self._beside(self._answers(writes))
        await asyncio.wait([batch], timeout=_PATIENCE)
        if not batch.done():
            answers: Sequence[Any] = [self._beside(self._answer_of(batch, position)) for position in range(len(writes))]
        elif (failure := batch.exception()) is not None:
            answers = [failure] * len(writes)
        else:
            answers = batch.result()
        for write, answer in zip(writes, answers, strict=True):
            if isinstance(answer, asyncio.Task):
                self._comes_last(write, answer)
        return answers

    def _after_others(self, write: Write) -> asyncio.Task[Any]:
        before = {self._last[name] for name in _names(write) if name in self._last}
        task = self._beside(self._alone_after(before, write))
        self._comes_last(write, task)
        return task

    def _comes_last(self, write: Write, task: asyncio.Task[Any]) -> None:
        names = _names(write)
        self._last.update(dict.fromkeys(names, task))
        task.add_done_callback(lambda _: self._is_through(names, task))

    def _is_through(self, names: Sequence[tuple[str, str]], task: asyncio.Task[Any]) -> None:
        for name in names:
            if self._last.get(name) is task:
                del self._last[name]

    async def _answers(self, writes: Sequence[Write]) -> Sequence[Any]:
        try:
            if len(writes) == 1:
                return [await self._alone(writes[0], _TOGETHER)]
            return await self._database.attempt(lambda session: self._together(writes, session), _TOGETHER)
        except ContendedError:
            pass
        except StoreUnavailableError:
            raise
        except (StoreError, InvalidInputError):  # by something that one of them has, maybe
            if len(writes) == 1:
                raise
        return self._each_apart(writes)

    async def _together(self, writes: Sequence[Write], session: Session) -> list[Any]:
        ids = sorted({write.run_id for write in writes if not isinstance(write, Release)})
        fields = dict.fromkeys(RUN_FIELDS, 1)
        asked = self._runs.find({"_id": {"$in": ids}}, fields, session=session)
        runs = await asked.to_list() if ids else []
        tied = {run["_id"] for run in runs if run["thread_id"] is not None}
        named = [write.thread_id for write in writes if not (isinstance(write, End) and write.run_id in tied)]
        names = sorted({name for name in named if name is not None})
        found = self._threads.find({"_id": {"$in": names}}, dict.fromkeys(THREAD_FIELDS, 1), session=session)
        batch = Batch(await found.to_list() if names else [], runs)
        answers = [batch.add(write) for write in writes]
        for collection, operations in ((self._threads, batch.of_threads()), (self._runs, batch.of_runs())):
            if operations:
                await collection.bulk_write(operations, session=session)
        return answers

    def _each_apart(self, writes: Sequence[Write]) -> list[asyncio.Task[Any]]:
        """Tasks for the writes: those of one run or one thread one after the other, in their order."""
        tasks: list[asyncio.Task[Any]] = []
        last: dict[tuple[str, str], asyncio.Task[Any]] = {}
        for write in writes:
            before = {last[name] for name in _names(write) if name in last}
            task = self._beside(self._alone_after(before, write))
            last.update(dict.fromkeys(_names(write), task))
            tasks.append(task)
        return tasks

    async def _alone_after(self, before: set[asyncio.Task[Any]], write: Write) -> Any:
        if before:
            await asyncio.wait(before, timeout=self._database.operation_timeout)
            if not all(task.done() for task in before):  # its caller has been told as much
                raise StoreUnavailableError(f"MongoDB at {self._database.place} did not answer in time.")
        return await self._alone(write)

    async def _answer_of(self, batch: asyncio.Task[Sequence[Any]], position: int) -> Any:
        answer = (await asyncio.shield(batch))[position]
        if isinstance(answer, Exception):
            raise answer
        return await answer if isinstance(answer, asyncio.Task) else answer

    def _beside(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task that the writer does not wait for, or not for long; `close` does."""
        task = asyncio.create_task(work, name="skeino write")
        self._apart.add(task)
        task.add_done_callback(self._is_over)
        return task

    def _is_over(self, task: asyncio.Task[Any]) -> None:
        self._apart.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may have gone

    # ── Alone ────────────────────────────────────────────────────────────────────────────────────────────

    async def _alone(self, write: Write, times: int | None = None) -> Any:
        """One write with nothing beside it; as often as it takes, or as `times` says."""
        if isinstance(write, Start):
            return await self._start(write, times)
        if isinstance(write, Attachment):
            return await self._database.attempt(lambda session: self._attach(write, session), times)
        if isinstance(write, Release):
            return await self._release(write)
        return await self._end(write, times)

    async def _start(self, start: Start, times: int | None) -> None:
        thread = start.thread
        if thread is None:
            async with self._database.operation():
                if start.thread_id is not None:
                    await self._refuse_other_owner(start.thread_id, start.run["owner"])
                await self._insert_run(start.run, None)
            return
        try:
            if await self._database.attempt(lambda session: self._start_on_thread(start, thread, session), times):
                return
        except _StartedAlreadyError:
            pass
        async with self._database.operation():
            await self._refuse_other_owner(thread["_id"], thread["owner"])

    async def _start_on_thread(self, start: Start, thread: Document, session: Session) -> bool:
        if session is None and await self._runs.find_one({"_id": start.run_id}, {"_id": 1}):
            return False
        await self._tie(thread, session)
        if not await self._insert_run(start.run, session):
            raise _StartedAlreadyError  # which takes back the tie
        if session is None:
            await self._tie_again(thread, start.run_id)
        return True

    async def _attach(self, attachment: Attachment, session: Session) -> int | None:
        thread_id = attachment.thread_id
        thread = await self._tie(attachment.thread, session)
        condition = {"_id": attachment.run_id, "thread_id": None, "active": True}
        await self._runs.update_one(condition, {"$set": {"thread_id": thread_id}}, session=session)
        if session is None:
            await self._tie_again(attachment.thread, attachment.run_id)
        if not attachment.claims or thread["queue"]:
            return None
        taken = await self._threads.find_one_and_update(
            {"_id": thread_id, "queue": []},
            {"$set": {"queue": [attachment.run_id]}, "$inc": {"fence": 1}},
            projection=["fence"],
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        return None if taken is None else int(taken["fence"])

    async def _release(self, release: Release) -> None:
        queued = {"_id": release.thread_id, "queue": release.run_id}
        async with self._database.operation():
            await self._threads.update_one(queued, {"$pull": {"queue": release.run_id}})

    async def _end(self, end: End, times: int | None) -> bool:
        changes, finish = end.changes(), end.finish
        status, at = finish["thread_status"], finish["finished_at"]

        async def end_run(session: Session) -> bool:
            run = await self._runs.find_one_and_update(
                end.fence, changes, projection=["thread_id", "owner"], session=session
            )
            if run is None:
                return False
            if run["thread_id"] is not None:
                if status is not None:
                    await settle(self._threads, {"_id": run["thread_id"]}, status, at, session)
            elif finish["thread_id"] is not None:
                await self._tie_at_the_end(run, finish["thread_id"], status, at, session)
            return True

        if await self._database.attempt(end_run, times):
            return True
        async with self._database.operation():
            return await self._runs.find_one(end.traces, {"_id": 1}) is not None

    async def _insert_run(self, document: Document, session: Session) -> bool:
        """Whether the run is new."""
        try:
            await self._runs.insert_one(document, session=session)
        except DuplicateKeyError:
            return False
        return True

    async def _tie(self, thread: Document, session: Session) -> Document:
        """Make the thread if there is none, and count up its ties; what it has of `THREAD_FIELDS`.

        Raises:
            ThreadNotFoundError: it is another owner's.
        """
        new = {field: value for field, value in thread.items() if field != "ties"}
        found = await self._threads.find_one_and_update(
            {"_id": thread["_id"]},
            {"$setOnInsert": new, "$inc": {"ties": 1}},
            projection=THREAD_FIELDS,
            upsert=True,
            return_document=ReturnDocument.AFTER,
            session=session,
        )
        assert found is not None  # it is made if there is none
        if found["owner"] != thread["owner"]:
            raise ThreadNotFoundError(f"There is no thread {thread['_id']!r}.")
        return found

    async def _tie_again(self, thread: Document, run_id: str) -> None:
        """Without a transaction a deletion may have gone by: make the thread anew, unless another owner has."""
        try:
            await self._tie(thread, None)
        except ThreadNotFoundError:
            condition = {"_id": run_id, "thread_id": thread["_id"]}
            await self._runs.update_one(condition, {"$set": {"thread_id": None}})
            raise

    async def _tie_at_the_end(
        self, run: Document, thread_id: str, status: SettledStatus | None, at: datetime, session: Session
    ) -> None:
        """Tie a run that has just ended to the thread it worked on, if that is there and its owner's."""
        condition = {"_id": thread_id, "owner": run["owner"]}
        tied = await self._threads.update_one(condition, {"$inc": {"ties": 1}}, session=session)
        if not tied.matched_count:
            return
        if status is not None:
            await settle(self._threads, condition, status, at, session)
        this_run = {"_id": run["_id"]}
        await self._runs.update_one(this_run, {"$set": {"thread_id": thread_id}}, session=session)
        if session is None and not await self._threads.find_one(condition, {"_id": 1}):
            await self._runs.update_one(this_run, {"$set": {"thread_id": None}})

    async def _refuse_other_owner(self, thread_id: str, owner: str | None) -> None:
        await refuse_other_owner(self._threads, thread_id, owner)


def _names(write: Write) -> Sequence[tuple[str, str]]:
    """The run and the thread that it is on."""
    of_run = ("run", write.run_id)
    return (of_run,) if write.thread_id is None else (of_run, ("thread", write.thread_id))


async def settle(
    threads: Collection, condition: Document, status: SettledStatus, at: datetime, session: Session
) -> None:
    """Set the status in which the last run left its thread."""
    changes = {"$set": {"status": status, "pruned": False}, "$max": {"updated_at": microseconds(at)}}
    await threads.update_many(condition, changes, session=session)


async def refuse_other_owner(threads: Collection, thread_id: str, owner: str | None) -> None:
    """Nothing, unless there is such a thread.

    Raises:
        ThreadNotFoundError: it is another owner's.
    """
    thread = await threads.find_one({"_id": thread_id}, {"owner": 1})
    if thread is not None and thread["owner"] != owner:
        raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")


class _StartedAlreadyError(Exception):
    """The run is there already."""
