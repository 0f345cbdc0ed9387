"""The documents of the MongoDB `MongoMetadataStore`: how rows are stored, found, changed, and read again.

- Times are integers of microseconds since 1970, for BSON's own dates have milliseconds only. The end of a run that
  has not ended is the largest of them, so that sorting by it needs nothing computed.
- Metadata is an array with an entry for each key, because a key may be any text, `$set` and `a.b` included, which the
  names of fields may not. An entry has the value as JSON, as it is returned, and what it equals, as it is searched.
- A thread is `pruned` once what is due by its `ttl` has been done, until it changes again.
- What is never searched (`config`, `kwargs`, `error`, `late_outcome`) is JSON text.

Texts of callers stand only where MongoDB expects values: in updates that are pipelines, within `$literal`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from bson.int64 import Int64

from skeino.persistence.mongodb.schema import RARE_OF_RUNS, RUNS
from skeino.persistence.queries import Query, checked_owner
from skeino.persistence.rows import ACTIVE_STATUSES, ANY_OWNER, OwnerFilter, RunError, RunFinish, RunRow, ThreadRow
from skeino.validation import Scalar

Document = dict[str, Any]

NOT_YET: Final = Int64(2**63 - 1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def thread_document(thread: ThreadRow) -> Document:
    return {
        "_id": thread["thread_id"],
        "owner": thread["owner"],
        "status": thread["status"],
        "metadata": entries_of(thread["metadata"]),
        "config": json_text(thread["config"]),
        "ttl": thread["ttl"],
        "created_at": microseconds(thread["created_at"]),
        "updated_at": microseconds(thread["updated_at"]),
        "pruned": False,
        "ties": 0,
        "queue": [],
        "fence": microseconds(datetime.now(UTC)),
    }


def thread_of(document: Document, *, busy: bool) -> ThreadRow:
    return cast(
        "ThreadRow",
        {
            "thread_id": document["_id"],
            "owner": document["owner"],
            "status": "busy" if busy else document["status"],
            "metadata": _metadata_of(document["metadata"]),
            "config": json.loads(document["config"]),
            "ttl": document["ttl"],
            "created_at": _time_of(document["created_at"]),
            "updated_at": _time_of(document["updated_at"]),
        },
    )


def run_document(run: RunRow) -> Document:
    document: Document = {
        **run,
        "_id": run["run_id"],
        "active": run["status"] in ACTIVE_STATUSES,
        "metadata": entries_of(run["metadata"]),
        "kwargs": json_text(run["kwargs"]),
        "error": error_text(run["error"]),
        "late_outcome": None if run["late_outcome"] is None else json_text(run["late_outcome"]),
        "created_at": microseconds(run["created_at"]),
        "started_at": microseconds(run["started_at"]),
        "finished_at": NOT_YET if run["finished_at"] is None else microseconds(run["finished_at"]),
    }
    del document["run_id"]
    return document


def run_of(document: Document) -> RunRow:
    row = {column: document.get(column) for column in RunRow.__annotations__}
    return cast(
        "RunRow",
        {
            **row,
            "run_id": document["_id"],
            "metadata": _metadata_of(document["metadata"]),
            "kwargs": json.loads(document["kwargs"]),
            "error": None if document["error"] is None else json.loads(document["error"]),
            "late_outcome": None if row["late_outcome"] is None else json.loads(document["late_outcome"]),
            "created_at": _time_of(document["created_at"]),
            "started_at": _time_of(document["started_at"]),
            "finished_at": None if document["finished_at"] == NOT_YET else _time_of(document["finished_at"]),
        },
    )


def finish_changes(finish: RunFinish) -> Document:
    """The fields of a run's document that its end sets, but for its metadata."""
    return {
        "status": finish["status"],
        "active": False,
        "finished_at": microseconds(finish["finished_at"]),
        "error": error_text(finish["error"]),
        "http_status": finish["http_status"],
        "checkpoint_count": finish["checkpoint_count"],
        "first_checkpoint_id": finish["first_checkpoint_id"],
        "last_checkpoint_id": finish["last_checkpoint_id"],
        "paused": finish["paused"],
    }


def update(changes: Document, *, metadata: Mapping[str, Any]) -> list[Document]:
    """An update that sets fields, and merges metadata over what is there, key by key, in the server."""
    fields: Document = {name: {"$literal": value} for name, value in changes.items()}
    if metadata:
        is_kept = {"$not": [{"$in": ["$$entry.key", {"$literal": list(metadata)}]}]}
        kept = {"$filter": {"input": "$metadata", "as": "entry", "cond": is_kept}}
        fields["metadata"] = {"$concatArrays": [kept, {"$literal": entries_of(metadata)}]}
    return [{"$set": fields}]


def one(row_id: str, owner: OwnerFilter) -> Document:
    """The filter for one row."""
    condition: Document = {"_id": row_id}
    if checked_owner(owner) is not ANY_OWNER:
        condition["owner"] = owner
    return condition


def run_filter(query: Query) -> Document:
    condition = _filter(query)
    if query.statuses is not None:
        condition["status"] = {"$in": list(query.statuses)}
        if query.statuses and set(query.statuses) <= set(ACTIVE_STATUSES):
            condition["active"] = True  # says the same, and is what the index is of
        elif query.statuses and set(query.statuses) < set(RARE_OF_RUNS):
            # Says nothing new either: of several of an index's values MongoDB does not see that they are some of them.
            condition["$and"] = [{"status": {"$in": [*RARE_OF_RUNS]}}]
    if query.thread_id is not None:
        condition["thread_id"] = query.thread_id
    return condition


def thread_pipeline(query: Query, busy: Sequence[str], *, ahead: int | None) -> list[Document]:
    """The stages of a search for threads, each found with at most one of its active runs as `active`.

    They are sorted first, by an index, and whether they are busy is seen after that.

    Args:
        query: what is searched.
        busy: the threads that had active runs a moment ago; they count only if the query wants them.
        ahead: at how many threads to look beyond the page, of which some may be left out; None is no bound.
    """
    condition = _filter(query)
    sort: Document = {"$sort": dict(order(query))}
    page: list[Document] = [{"$skip": query.offset}, {"$limit": query.limit}]
    if query.statuses is None:
        return [{"$match": condition}, sort, *page, WITH_ACTIVE_RUN]
    settled = {"status": {"$in": [status for status in query.statuses if status != "busy"]}}
    meant: Document = settled
    still: Document = {"active": []}
    if "busy" in query.statuses:  # found by their runs, of which there are few
        is_busy = {"_id": {"$in": [*busy]}}
        meant = {"$or": [is_busy, settled]} if settled["status"]["$in"] else is_busy
        still = {"$or": [{"active": {"$ne": []}}, settled]}
    # MongoDB reads thousands of documents ahead of a $lookup, unless a limit stands before it.
    first = [] if ahead is None else [{"$limit": query.offset + query.limit + ahead}]
    return [{"$match": {"$and": [condition, meant]}}, sort, *first, WITH_ACTIVE_RUN, {"$match": still}, *page]


WITH_ACTIVE_RUN: Final[Document] = {
    "$lookup": {
        "from": RUNS,
        "localField": "_id",
        "foreignField": "thread_id",
        "pipeline": [{"$match": {"active": True}}, {"$limit": 1}, {"$project": {"_id": 1}}],
        "as": "active",
    }
}


def order(query: Query) -> list[tuple[str, int]]:
    """The columns to sort by; texts compare by their bytes, which is by their characters' numbers."""
    direction = -1 if query.descending else 1
    column = "_id" if query.sort_by in ("thread_id", "run_id") else query.sort_by
    return [(column, direction)] if column == "_id" else [(column, direction), ("_id", direction)]


def _filter(query: Query) -> Document:
    condition: Document = {}
    if query.ids is not None:
        condition["_id"] = {"$in": list(query.ids)}
    if query.owner is not ANY_OWNER:
        condition["owner"] = query.owner
    if query.created_after is not None:
        condition["created_at"] = {"$gte": microseconds(query.created_after)}
    if query.created_before is not None:
        condition.setdefault("created_at", {})["$lt"] = microseconds(query.created_before)
    if query.metadata is not None:
        condition["metadata"] = {
            "$all": [{"$elemMatch": {"key": key, "equals": _equals(value)}} for key, value in query.metadata.items()]
        }
    return condition


def entries_of(metadata: Mapping[str, Any]) -> list[Document]:
    return [
        {"key": key, "equals": None if isinstance(value, dict | list) else _equals(value), "json": json_text(value)}
        for key, value in metadata.items()
    ]


def _metadata_of(entries: list[Document]) -> Document:
    return {entry["key"]: json.loads(entry["json"]) for entry in entries}


def _equals(value: Scalar) -> str:
    """A text that two scalars share if they are equal as JSON has it: 1 is 1.0, but neither is true."""
    if isinstance(value, str):
        return f"text {value}"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{'number ' if isinstance(value, int | float) and not isinstance(value, bool) else ''}{json_text(value)}"


def json_text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def error_text(error: RunError | None) -> str | None:
    return None if error is None else json_text(error)


def microseconds(moment: datetime) -> Int64:
    return Int64((moment - _EPOCH) // _MICROSECOND)


def _time_of(number: int) -> datetime:
    return _EPOCH + timedelta(microseconds=number)
