"""`Batch`: what starts, claims, releases and ends of runs that came together come to, over the documents read for them.

Nothing here asks the server. Each write gets its answer as if the ones before it had been written already, and all of
them become a few bulk operations. They are made in the transaction that has read: whoever changes one of the documents
in between makes it start again, from what it reads then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from bson.int64 import Int64
from pymongo import InsertOne, UpdateOne

from skeino.errors import ThreadNotFoundError
from skeino.persistence.mongodb.documents import Document, finish_changes, microseconds, update
from skeino.persistence.rows import RunFinish

Operation = InsertOne[Document] | UpdateOne


@dataclass(frozen=True, slots=True)
class Start:
    """A run that starts."""

    run: Document
    """Its document, which names the thread that it is tied to."""
    thread_id: str | None
    """The thread that it works on, tied to it or not."""
    thread: Document | None
    """The document of the thread that it is tied to, for the case that there is none yet."""

    @property
    def run_id(self) -> str:
        return str(self.run["_id"])


@dataclass(frozen=True, slots=True)
class Attachment:
    """A thread for a run that may have none yet."""

    run_id: str
    thread: Document
    claims: bool = False
    """The run is to hold the thread, if nobody is in its queue; the answer is the fence then."""

    @property
    def thread_id(self) -> str:
        return str(self.thread["_id"])


@dataclass(frozen=True, slots=True)
class Release:
    """A run that is to leave a thread's queue."""

    run_id: str
    thread_id: str


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended."""

    finish: RunFinish

    @property
    def run_id(self) -> str:
        return self.finish["run_id"]

    @property
    def thread_id(self) -> str | None:
        return self.finish["thread_id"]

    @property
    def fence(self) -> Document:
        """The filter for the run, if this may end it."""
        return {"_id": self.finish["run_id"], "worker_id": self.finish["worker_id"], "active": True}

    @property
    def traces(self) -> Document:
        """The filter for the run, if this has ended it."""
        return {
            "_id": self.finish["run_id"],
            "worker_id": self.finish["worker_id"],
            "status": self.finish["status"],
            "finished_at": microseconds(self.finish["finished_at"]),
        }

    def changes(self, **more: Any) -> Document | list[Document]:
        """The update of the run's document."""
        fields = {**finish_changes(self.finish), **more}
        return update(fields, metadata=self.finish["metadata"]) if self.finish["metadata"] else {"$set": fields}


Write = Start | Attachment | Release | End

RUN_FIELDS: Final = ("_id", "thread_id", "owner", "worker_id", "active", "status", "finished_at")
"""What must be known of the runs that are written to."""

THREAD_FIELDS: Final = ("_id", "owner", "queue", "fence")
"""The same of threads."""


class Batch:
    """Writes that are committed together.

    Args:
        threads: those that the writes name, with `THREAD_FIELDS`, as far as there are such.
        runs: the same, with `RUN_FIELDS`.
    """

    def __init__(self, threads: Iterable[Document], runs: Iterable[Document]) -> None:
        there = [*threads]
        self._owners = {thread["_id"]: thread["owner"] for thread in there}
        self._queues = {thread["_id"]: thread["queue"] for thread in there}
        self._fences = {thread["_id"]: int(thread["fence"]) for thread in there}
        self._known = {run["_id"]: run for run in runs}
        self._threads: dict[str, _ThreadChanges] = {}
        self._new_runs: list[Document] = []
        self._changed_runs: list[tuple[str, UpdateOne]] = []

    def add(self, write: Write) -> Any:
        """The write's answer, or the exception that it has earned, and then nothing of it is written."""
        try:
            if isinstance(write, Start):
                return self._start(write)
            if isinstance(write, Attachment):
                return self._attach(write)
            return self._release(write) if isinstance(write, Release) else self._end(write)
        except ThreadNotFoundError as exc:
            return exc

    def of_threads(self) -> list[Operation]:
        """The operations on threads: one for each, new ones first, in the order of ids, as in every process."""
        changed = sorted(self._threads.items(), key=lambda item: (item[1].new is None, item[0]))
        return [changes.operation(thread_id) for thread_id, changes in changed]

    def of_runs(self) -> list[Operation]:
        """The operations on runs: each is made before it is changed, and changed in the order of the writes."""
        changes = sorted(self._changed_runs, key=lambda change: change[0])
        return [*map(InsertOne, self._new_runs), *(operation for _, operation in changes)]

    def _start(self, start: Start) -> None:
        run = start.run
        if start.thread_id is not None:
            self._refuse_other_owner(start.thread_id, run["owner"])
        if start.run_id in self._known:
            return
        if start.thread is not None:
            self._tie(start.thread)
        self._new_runs.append(run)
        self._known[start.run_id] = {field: run[field] for field in RUN_FIELDS}  # which the writes after it change

    def _attach(self, attachment: Attachment) -> int | None:
        self._refuse_other_owner(attachment.thread_id, attachment.thread["owner"])
        self._tie(attachment.thread)
        run = self._known.get(attachment.run_id)
        if run is not None and run["active"] and run["thread_id"] is None:
            run["thread_id"] = attachment.thread_id
            self._change(run, {"$set": {"thread_id": attachment.thread_id}})
        return self._take(attachment) if attachment.claims else None

    def _take(self, claim: Attachment) -> int | None:
        thread_id = claim.thread_id
        if self._queues[thread_id]:
            return None
        changes = self._of(thread_id)
        self._queues[thread_id] = changes.queue = [claim.run_id]
        self._fences[thread_id] = changes.fence = self._fences[thread_id] + 1
        return changes.fence

    def _release(self, release: Release) -> None:
        queue = self._queues.get(release.thread_id, ())
        if release.run_id in queue:
            left = [run_id for run_id in queue if run_id != release.run_id]
            self._queues[release.thread_id] = self._of(release.thread_id).queue = left

    def _end(self, end: End) -> bool:
        finish, run = end.finish, self._known.get(end.run_id)
        if run is None:
            return False
        if any(run[field] != value for field, value in end.fence.items()):
            return all(run[field] == value for field, value in end.traces.items())
        more, thread_id = {}, run["thread_id"]
        if thread_id is None and end.thread_id is not None and self._is_there(end.thread_id, run["owner"]):
            thread_id = more["thread_id"] = end.thread_id
            self._of(thread_id).ties += 1
        if thread_id is not None and finish["thread_status"] is not None:
            self._of(thread_id).settle(finish["thread_status"], microseconds(finish["finished_at"]))
        self._change(run, end.changes(**more))
        run.update(end.traces, active=False)
        return True

    def _refuse_other_owner(self, thread_id: str, owner: str | None) -> None:
        if self._owners.get(thread_id, owner) != owner:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")

    def _is_there(self, thread_id: str, owner: str | None) -> bool:
        return thread_id in self._owners and self._owners[thread_id] == owner

    def _tie(self, thread: Document) -> None:
        changes = self._of(thread["_id"])
        changes.ties += 1
        if thread["_id"] not in self._owners:
            self._owners[thread["_id"]] = thread["owner"]
            self._queues[thread["_id"]], self._fences[thread["_id"]] = thread["queue"], int(thread["fence"])
            changes.new = thread

    def _of(self, thread_id: str) -> _ThreadChanges:
        return self._threads.setdefault(thread_id, _ThreadChanges())

    def _change(self, run: Document, changes: Document | list[Document]) -> None:
        # By its id alone: with the fence, too, the server weighs several indexes, each time.
        self._changed_runs.append((run["_id"], UpdateOne({"_id": run["_id"]}, changes)))


@dataclass(slots=True)
class _ThreadChanges:
    """What a batch does to a thread."""

    new: Document | None = None
    """Its document, where there was none."""
    ties: int = 0
    status: str | None = None
    """How the last run that ended has left it."""
    settled_at: Int64 | None = None
    queue: list[str] | None = None
    """The runs in its queue, where they have changed."""
    fence: int | None = None
    """The same of its fence."""

    def settle(self, status: str, at: Int64) -> None:
        self.status = status
        self.settled_at = at if self.settled_at is None else max(self.settled_at, at)

    def operation(self, thread_id: str) -> Operation:
        fields: Document = {} if self.queue is None else {"queue": self.queue}
        if self.fence is not None:
            fields["fence"] = Int64(self.fence)
        if self.status is not None:
            fields["status"] = self.status
        if self.new is not None:
            document = {**self.new, **fields, "ties": self.ties}
            if self.settled_at is not None:
                document["updated_at"] = max(document["updated_at"], self.settled_at)
            return InsertOne(document)
        changes: Document = {"$inc": {"ties": self.ties}} if self.ties else {}
        if self.settled_at is not None:
            fields["pruned"] = False
            changes["$max"] = {"updated_at": self.settled_at}
        if fields:
            changes["$set"] = fields
        return UpdateOne({"_id": thread_id}, changes)
