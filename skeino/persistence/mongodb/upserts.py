"""Upserts of documents that are hardly ever there: they are inserted, which costs the server half as much.

What is there after all shows itself, for its place is unique: that is upserted, as it was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pymongo import IndexModel, UpdateOne
from pymongo.client_session import ClientSession
from pymongo.collection import Collection
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    WriteConcernError,
    WriteError,
)

from skeino.persistence.mongodb.documents import Document


def has_unique(collection: Collection[Document], index: IndexModel) -> bool:
    """Whether the collection has an index of these fields, of all its documents, and no two in one place of it.

    One that somebody has made otherwise is left so by LangGraph's saver. One that is dropped later is not noticed.
    """
    fields = [*index.document["key"].items()]
    partial = ("partialFilterExpression", "sparse", "collation")
    return any(
        one.get("unique") and [*one["key"].items()] == fields and not any(map(one.get, partial))
        for one in collection.list_indexes()
    )


def write(collection: Collection[Document], operations: Sequence[UpdateOne], *, insert: bool) -> set[int]:
    """Write them all, in no order but that of operations on one document.

    Args:
        collection: where; with `insert` one whose unique index has the fields that the operations look for.
        operations: what to write.
        insert: try so first.

    Returns:
        Those of which the server does not say that they are written, and durable, by their indexes.
    """
    left: Sequence[int] = range(len(operations))
    documents = new_documents(operations) if insert else None
    if documents:
        try:
            _insert(collection, documents)
            return set()
        except WriteConcernError:
            return {*left}
        except WriteError:
            pass  # of a document by itself: it is all that is left
        except BulkWriteError as exc:
            if _is_late(exc):
                return {*left}
            left = _failed(exc)
    try:
        if left:
            collection.bulk_write([operations[index] for index in left], ordered=False)
    except BulkWriteError as exc:
        return {*left} if _is_late(exc) else {left[index] for index in _failed(exc)}
    except ConnectionFailure:
        if not documents:
            raise
        return {*left}  # the others are there
    return set()


def write_within(
    session: ClientSession | None, collection: Collection[Document], operations: Sequence[UpdateOne], *, insert: bool
) -> None:
    """The same in a transaction, which has failed if one of them cannot be inserted.

    Raises:
        pymongo.errors.WriteError, pymongo.errors.BulkWriteError: so it is. Upserts may succeed.
    """
    documents = new_documents(operations) if insert else None
    if documents:
        _insert(collection, documents, session)
    elif operations:
        collection.bulk_write(operations, ordered=False, session=session)


def new_documents(operations: Sequence[UpdateOne]) -> list[Document] | None:
    """What each of these inserts where nothing is. None if one of them is more than that."""
    documents = [document for document in map(_new_document, operations) if document is not None]
    return documents if len(documents) == len(operations) else None


def _new_document(operation: UpdateOne) -> Document | None:
    # PyMongo shows nobody what an operation is to do. Should it keep that elsewhere, it is done as it always was.
    place: Any = getattr(operation, "_filter", None)
    changes: Any = getattr(operation, "_doc", None)
    if not getattr(operation, "_upsert", False) or not isinstance(changes, Mapping) or len(changes) != 1:
        return None
    [(operator, fields)] = changes.items()
    names = [*place, *fields]
    if operator not in ("$set", "$setOnInsert") or any("." in name or name.startswith("$") for name in names):
        return None
    if any(isinstance(value, Mapping) for value in place.values()):  # a condition, not a value
        return None
    return {**dict(sorted(place.items())), **dict(sorted(fields.items()))}  # as the server has it


def _insert(
    collection: Collection[Document], documents: Sequence[Document], session: ClientSession | None = None
) -> None:
    if len(documents) == 1:  # PyMongo's way for one is shorter
        collection.insert_one(documents[0], session=session)
    else:
        collection.insert_many(documents, ordered=False, session=session)


def _is_late(exc: BulkWriteError) -> bool:
    """Whether it is written, but not known to be durable."""
    return bool((exc.details or {}).get("writeConcernErrors"))


def _failed(exc: BulkWriteError) -> list[int]:
    return sorted(error["index"] for error in (exc.details or {}).get("writeErrors", []))
