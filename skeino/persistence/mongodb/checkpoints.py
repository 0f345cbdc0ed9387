"""Checkpoints as `MongoDBSaver` has them: one in one operation, a page in two. It has one more for each checkpoint.

Pending writes are in the order in which a running graph applies them. The stock saver has them in that of an index, and
so replays a `DeltaChannel` to another value than the run had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from langgraph.checkpoint.base import CheckpointTuple, get_checkpoint_id, writes_sort_key
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.mongodb.utils import _validate_filter, _validate_identifier, dumps_metadata, loads_metadata
from pymongo import ASCENDING, DESCENDING
from pymongo.errors import OperationFailure

from skeino.persistence.paging import Place, has_one_place

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

Document = dict[str, Any]

_NEWEST_FIRST: Final = [("checkpoint_id", DESCENDING)]
_IN_ONE_ORDER: Final = [*_NEWEST_FIRST, ("thread_id", ASCENDING), ("checkpoint_ns", ASCENDING)]

_MOST_AHEAD: Final = 100  # checkpoints


def one(saver: MongoDBSaver, config: RunnableConfig) -> CheckpointTuple | None:
    """The checkpoint that the config names, or the latest."""
    query = _in_namespace(*place_of(config))
    if checkpoint_id := _validate_identifier(get_checkpoint_id(config), "checkpoint_id", optional=True):
        query["checkpoint_id"] = checkpoint_id
    try:
        document = next(iter(saver.checkpoint_collection.aggregate(_with_writes(saver, query)).to_list()), None)
    except OperationFailure:  # together they are larger than a document may be; or no $lookup is possible here
        found = _read(saver, query, _NEWEST_FIRST, 1)
        return found[0] if found else None
    return _loaded(saver, document, document["writes"]) if document else None


def place_of(config: RunnableConfig) -> tuple[str, str]:
    """The thread's id, and the checkpoint namespace in it."""
    configurable = config["configurable"]
    return configurable["thread_id"], configurable.get("checkpoint_ns", "")


def latest_of_each(asked: Sequence[tuple[MongoDBSaver, tuple[str, str]]]) -> list[list[CheckpointTuple] | None]:
    """For each thread and namespace its latest checkpoint, if there is one, as its saver loads it; in one operation.

    None, where it cannot be loaded: what is wrong with one is not the others' business.

    Raises:
        pymongo.errors.OperationFailure: the server cannot do so.
    """
    saver = asked[0][0]
    first, *others = [
        _with_writes(saver, _in_namespace(*place)) for place in dict.fromkeys(place for _, place in asked)
    ]
    collection = saver.checkpoint_collection
    pipeline = [*first, *({"$unionWith": {"coll": collection.name, "pipeline": other}} for other in others)]
    found = {
        (document["thread_id"], document["checkpoint_ns"]): document
        for document in collection.aggregate(pipeline).to_list()
    }

    def loaded(saver: MongoDBSaver, document: Document | None) -> list[CheckpointTuple] | None:
        try:
            return [_loaded(saver, document, document["writes"])] if document else []
        except Exception:
            return None

    return [loaded(saver, found.get(place)) for saver, place in asked]


def page(
    saver: MongoDBSaver,
    config: RunnableConfig | None,
    filter: dict[str, Any] | None,
    before: RunnableConfig | None,
    after: Place | None,
    size: int,
) -> list[CheckpointTuple]:
    """The checkpoints after that place, from the newest to the oldest."""
    query: Document = {}
    if config is not None:
        for name in ("thread_id", "checkpoint_ns"):
            if name in config["configurable"]:
                query[name] = _validate_identifier(config["configurable"][name], name)
    if filter:
        _validate_filter(filter)
        for key, value in filter.items():
            query[f"metadata.{key}"] = dumps_metadata(saver.serde, value)
    if before is not None:
        query["checkpoint_id"] = {
            "$lt": _validate_identifier(before["configurable"]["checkpoint_id"], "before checkpoint_id")
        }
    if has_one_place(config):
        if after is not None:
            query["checkpoint_id"] = {"$lt": after.checkpoint_id}
        return _read(saver, query, _NEWEST_FIRST, size)
    if after is not None:
        checkpoint_id, thread_id, namespace = after
        query["$or"] = [
            {"checkpoint_id": {"$lt": checkpoint_id}},
            {"checkpoint_id": checkpoint_id, "thread_id": {"$gt": thread_id}},
            {"checkpoint_id": checkpoint_id, "thread_id": thread_id, "checkpoint_ns": {"$gt": namespace}},
        ]
    return _read(saver, query, _IN_ONE_ORDER, size)


class Ancestors:
    """As much of a saver as `BaseCheckpointSaver.get_delta_channel_history` needs, which asks for a checkpoint, its
    parent, the parent's parent …: this reads ahead, the further the longer the way is.
    """

    def __init__(self, saver: MongoDBSaver) -> None:
        self._saver = saver
        self._read: dict[str, CheckpointTuple] = {}
        self._ahead = 1

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        checkpoint_id = get_checkpoint_id(config)
        if checkpoint_id is None:
            return one(self._saver, config)
        if checkpoint_id not in self._read:
            query = _in_namespace(*place_of(config))
            query["checkpoint_id"] = {"$lte": _validate_identifier(checkpoint_id, "checkpoint_id")}
            found = _read(self._saver, query, _NEWEST_FIRST, self._ahead)
            self._read = {one.config["configurable"]["checkpoint_id"]: one for one in found}
            self._ahead = min(10 * self._ahead, _MOST_AHEAD)
        return self._read.get(checkpoint_id)


def _in_namespace(thread_id: str, namespace: str) -> Document:
    return {
        "thread_id": _validate_identifier(thread_id, "thread_id"),
        "checkpoint_ns": _validate_identifier(namespace, "checkpoint_ns"),
    }


def _read(saver: MongoDBSaver, query: Document, order: list[tuple[str, int]], size: int) -> list[CheckpointTuple]:
    documents = saver.checkpoint_collection.find(query, sort=order, limit=size).to_list()
    if not documents:
        return []
    writes: dict[Place, list[Document]] = {_place(document): [] for document in documents}
    for write in saver.writes_collection.find(_of_these(writes)):
        writes[_place(write)].append(write)
    return [_loaded(saver, document, writes[_place(document)]) for document in documents]


def _with_writes(saver: MongoDBSaver, query: Document) -> list[Document]:
    """One answer instead of two. For a page two are better: this looks up the writes of each checkpoint by itself."""
    of_checkpoint = {"$expr": {"$eq": ["$checkpoint_id", "$$id"]}}
    of_place = {name: query[name] for name in ("thread_id", "checkpoint_ns")}
    return [
        {"$match": query},
        {"$sort": {"checkpoint_id": DESCENDING}},
        {"$limit": 1},
        {
            "$lookup": {
                "from": saver.writes_collection.name,
                "let": {"id": "$checkpoint_id"},
                "pipeline": [{"$match": {**of_place, **of_checkpoint}}],
                "as": "writes",
            }
        },
    ]


def _of_these(places: Iterable[Place]) -> Document:
    """The query for what belongs to these checkpoints, which the index answers."""
    ids: dict[tuple[str, str], list[str]] = {}
    for checkpoint_id, thread_id, namespace in places:
        ids.setdefault((thread_id, namespace), []).append(checkpoint_id)
    queries: list[Document] = [
        {
            "thread_id": thread_id,
            "checkpoint_ns": namespace,
            "checkpoint_id": {"$in": found} if len(found) > 1 else found[0],
        }
        for (thread_id, namespace), found in ids.items()
    ]
    return {"$or": queries} if len(queries) > 1 else queries[0]


def _place(document: Document) -> Place:
    return Place(document["checkpoint_id"], document["thread_id"], document["checkpoint_ns"])


def _loaded(saver: MongoDBSaver, document: Document, writes: Sequence[Document]) -> CheckpointTuple:
    in_order = sorted(writes, key=lambda one: writes_sort_key(one.get("task_path", ""), one["task_id"], one["idx"]))
    parent_id = document.get("parent_checkpoint_id")
    return CheckpointTuple(
        _config(document, document["checkpoint_id"]),
        saver.serde.loads_typed((document["type"], document["checkpoint"])),
        loads_metadata(saver.serde, document["metadata"]),
        _config(document, parent_id) if parent_id else None,
        [(one["task_id"], one["channel"], saver.serde.loads_typed((one["type"], one["value"]))) for one in in_order],
    )


def _config(document: Document, checkpoint_id: str) -> RunnableConfig:
    return {
        "configurable": {
            "thread_id": document["thread_id"],
            "checkpoint_ns": document["checkpoint_ns"],
            "checkpoint_id": checkpoint_id,
        }
    }
