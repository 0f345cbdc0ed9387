"""Parts of threads' histories in LangGraph's MongoDB collections: deleted by run, copied, pruned.

In one transaction where the deployment has them. Where it has none, the order of steps is such that nobody reads a
checkpoint without its writes: a checkpoint goes before its writes, and comes after them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from langgraph.checkpoint.mongodb.utils import loads_metadata
from pymongo.client_session import ClientSession
from pymongo.errors import DuplicateKeyError

from skeino.errors import ThreadExistsError
from skeino.persistence.pruning import (
    CheckpointOutline,
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

_CHUNK: Final = 1000


def delete_for_runs(saver: MongoDBSaver, database: MongoDatabase, run_ids: Sequence[str]) -> None:
    """Delete what these runs wrote, in all threads. Reads the metadata of all checkpoints: there is no index.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    wanted = checked_run_ids(run_ids)
    stored = [list(saver.serde.dumps_typed(run_id)) for run_id in wanted]  # as `dumps_metadata` has it

    def delete(session: Session) -> None:
        threads = saver.checkpoint_collection.distinct("thread_id", {"metadata.run_id": {"$in": stored}}, session)
        gone = [one for thread_id in threads for one in of_runs(_outlines(saver, thread_id, session), wanted)]
        _delete(saver, gone, session)

    _at_once(database, delete)


def copy_thread(saver: MongoDBSaver, database: MongoDatabase, source_thread_id: str, target_thread_id: str) -> None:
    """Copy all checkpoints and writes of a thread; of one that is not there, none.

    Raises:
        ThreadExistsError: the target has checkpoints already.
    """
    source, target = checked_copy(source_thread_id, target_thread_id)

    def copy(session: Session) -> None:
        if saver.checkpoint_collection.find_one({"thread_id": target}, {"_id": 1}, session=session):
            raise ThreadExistsError(target_exists(target))
        for collection in (saver.writes_collection, saver.checkpoint_collection):
            found = collection.find({"thread_id": source}, {"_id": 0}, session=session)
            for documents in _chunks({**document, "thread_id": target} for document in found):
                collection.insert_many(documents, session=session)

    try:
        _at_once(database, copy)
    except DuplicateKeyError:  # another process was faster
        raise ThreadExistsError(target_exists(target)) from None


def prune(saver: MongoDBSaver, database: MongoDatabase, thread_ids: Sequence[str], strategy: str) -> None:
    """Delete all checkpoints of these threads, or all but the latest of each namespace.

    Raises:
        DeltaChannelError: what stays could not be rebuilt; nothing was deleted.
    """
    threads, strategy = checked_prune(thread_ids, strategy)

    def delete(session: Session) -> None:
        if strategy == "keep_latest":
            gone = [one for thread_id in threads for one in all_but_latest(_outlines(saver, thread_id, session))]
            _delete(saver, gone, session)
            return
        for collection in (saver.checkpoint_collection, saver.writes_collection):
            collection.delete_many({"thread_id": {"$in": threads}}, session=session)

    _at_once(database, delete)


def _at_once(database: MongoDatabase, work: Callable[[Session], None]) -> None:
    """In one transaction, again if it loses against another; plainly where there are none."""
    if not database.transactions:
        work(None)
        return
    with database.blocking_client.start_session() as session:
        session.with_transaction(work)


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


def _chunks(items: Iterable[Any]) -> Iterable[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
