"""Parts of threads' histories in LangGraph's MongoDB collections: deleted by run, copied, pruned.

In one transaction where the deployment has them. Where it has none, the order of steps is such that nobody reads a
checkpoint without its writes: a checkpoint goes before its writes, and comes after them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from langgraph.checkpoint.mongodb.utils import loads_metadata
from pymongo import ASCENDING, DESCENDING
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import BulkWriteError

from skeino.errors import ThreadExistsError
from skeino.persistence.pruning import (
    CheckpointOutline,
    PruneStrategy,
    all_but_latest,
    checked_copy,
    checked_prune,
    checked_run_ids,
    of_runs,
    target_exists,
)

if TYPE_CHECKING:
    from langgraph.checkpoint.mongodb import MongoDBSaver

    from skeino.persistence.mongodb.connections import MongoDatabase

Session = ClientSession | None

_CHUNK: Final = 1000  # ids
_DOCUMENTS: Final = 100  # which may be large, and are in memory
_DUPLICATE_KEY: Final = 11000


def delete_for_runs(saver: MongoDBSaver, database: MongoDatabase, run_ids: Sequence[str]) -> None:
    """Delete what these runs wrote, in all threads. Reads the metadata of all checkpoints: there is no index.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    wanted = checked_run_ids(run_ids)
    stored = [list(saver.serde.dumps_typed(run_id)) for run_id in wanted]  # as `dumps_metadata` has it

    def delete(session: Session) -> None:
        threads = sorted({one for some in _chunks(stored) for one in _threads_of(saver, some, session)})
        gone = [one for thread_id in threads for one in of_runs(_outlines(saver, thread_id, session), wanted)]
        _delete(saver, gone, session)

    database.blocking_transact(delete)


def copy_thread(saver: MongoDBSaver, database: MongoDatabase, source_thread_id: str, target_thread_id: str) -> None:
    """Copy all checkpoints and writes of a thread; of one that is not there, none.

    Without transactions a copy that is broken off may leave the older checkpoints at the target: delete it, and copy
    again.

    Raises:
        ThreadExistsError: the target has checkpoints already.
    """
    source, target = checked_copy(source_thread_id, target_thread_id)
    mark = {"thread_id": target, "checkpoint_ns": "", "checkpoint_id": ""}

    def copy(session: Session) -> None:
        if saver.checkpoint_collection.find_one({"thread_id": target}, {"_id": 1}, session=session):
            raise ThreadExistsError(target_exists(target))
        if session is not None:
            # Two that copy onto one thread at the same time conflict over this document: the later one starts again.
            saver.checkpoint_collection.update_one(mark, {"$set": {"copying": True}}, upsert=True, session=session)
            saver.checkpoint_collection.delete_one(mark, session=session)
            saver.writes_collection.delete_many({"thread_id": target}, session=session)  # they are of no checkpoint
        for documents in _copies(saver.writes_collection, source, target, session):
            with _those_that_are_there(leave=session is None):  # by a copy that was broken off, or another's
                saver.writes_collection.insert_many(documents, ordered=False, session=session)
        for documents in _copies(saver.checkpoint_collection, source, target, session):
            saver.checkpoint_collection.insert_many(documents, session=session)  # the first to insert the first wins

    try:
        database.blocking_transact(copy)
    except BulkWriteError as exc:
        if not _only_duplicates(exc):
            raise
        raise ThreadExistsError(target_exists(target)) from None


def prune(saver: MongoDBSaver, database: MongoDatabase, thread_ids: Sequence[str], strategy: str) -> None:
    """Delete all checkpoints of these threads, or all but the latest of each namespace.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    threads, strategy = checked_prune(thread_ids, strategy)
    database.blocking_transact(lambda session: prune_within(saver, threads, strategy, session))


def prune_within(saver: MongoDBSaver, threads: Sequence[str], strategy: PruneStrategy, session: Session) -> None:
    """As `prune`, in a transaction of the caller's."""
    if strategy == "keep_latest":
        gone = [one for thread_id in threads for one in all_but_latest(_outlines(saver, thread_id, session))]
        _delete(saver, gone, session)
        return
    for some in _chunks(threads):
        for collection in (saver.checkpoint_collection, saver.writes_collection):
            collection.delete_many({"thread_id": {"$in": some}}, session=session)


def _threads_of(saver: MongoDBSaver, stored_run_ids: list[list[Any]], session: Session) -> Iterable[str]:
    pipeline: list[dict[str, Any]] = [
        {"$match": {"metadata.run_id": {"$in": stored_run_ids}}},
        {"$group": {"_id": "$thread_id"}},  # `distinct` answers in one document, and is not in the stable API
    ]
    return [one["_id"] for one in saver.checkpoint_collection.aggregate(pipeline, session=session)]


def _copies(
    collection: Collection[dict[str, Any]], source: str, target: str, session: Session
) -> Iterable[list[dict[str, Any]]]:
    """Documents for the target: a subgraph's before those of its graph, parents before children."""
    order = [("checkpoint_ns", DESCENDING), ("checkpoint_id", ASCENDING)]
    found = collection.find({"thread_id": source}, {"_id": 0}, sort=order, session=session)
    return _chunks(({**document, "thread_id": target} for document in found), _DOCUMENTS)


@contextmanager
def _those_that_are_there(*, leave: bool) -> Iterator[None]:
    try:
        yield
    except BulkWriteError as exc:
        if not leave or not _only_duplicates(exc):
            raise


def _only_duplicates(exc: BulkWriteError) -> bool:
    details = exc.details or {}
    codes = {one.get("code") for one in details.get("writeErrors", ())}
    return codes == {_DUPLICATE_KEY} and not details.get("writeConcernErrors")


def _outlines(saver: MongoDBSaver, thread_id: str, session: Session) -> list[CheckpointOutline]:
    fields = {"checkpoint": 0, "_id": 0}
    return [
        CheckpointOutline(
            one["thread_id"],
            one["checkpoint_ns"],
            one["checkpoint_id"],
            one.get("parent_checkpoint_id"),
            loads_metadata(saver.serde, one["metadata"]),
        )
        for one in saver.checkpoint_collection.find({"thread_id": thread_id}, fields, session=session)
    ]


def _delete(saver: MongoDBSaver, gone: Iterable[CheckpointOutline], session: Session) -> None:
    of_place: dict[tuple[str, str], list[str]] = {}
    for one in gone:
        of_place.setdefault((one.thread_id, one.namespace), []).append(one.checkpoint_id)
    for (thread_id, namespace), checkpoint_ids in of_place.items():
        place = {"thread_id": thread_id, "checkpoint_ns": namespace}
        for ids in _chunks(checkpoint_ids):
            saver.checkpoint_collection.delete_many({**place, "checkpoint_id": {"$in": ids}}, session=session)
            saver.writes_collection.delete_many({**place, "checkpoint_id": {"$in": ids}}, session=session)
            orphans = {**place, "parent_checkpoint_id": {"$in": ids}}
            saver.checkpoint_collection.update_many(orphans, {"$set": {"parent_checkpoint_id": None}}, session=session)


def _chunks(items: Iterable[Any], size: int = _CHUNK) -> Iterable[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
