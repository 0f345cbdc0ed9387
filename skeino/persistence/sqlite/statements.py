"""The SQL of `SqliteMetadataStore`, and how its rows read."""

from __future__ import annotations

import functools
import json
import re
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, cast

import orjson

from skeino.persistence.claims import Queue
from skeino.persistence.queries import Query, checked_owner
from skeino.persistence.rows import ACTIVE_STATUSES, ANY_OWNER, OwnerFilter, RunRow, ThreadRow, ThreadTTL
from skeino.persistence.sqlite.schema import INDEXED

RUN_COLUMNS = tuple(RunRow.__annotations__)
ACTIVE = "status IN ('pending', 'running')"


class Change:
    """A statement of a run's life, whose named parameters are handed over by their places: `sqlite3` looks each up by
    its name otherwise, which takes a twelfth of the statement's time.

    Args:
        text: SQL with at least two parameters.
    """

    def __init__(self, text: str) -> None:
        names = list(dict.fromkeys(re.findall(r":(\w+)", text)))
        self.text = re.sub(r":(\w+)", lambda found: f"?{names.index(found[1]) + 1}", text)
        self.values_of: Callable[[Mapping[str, Any]], tuple[Any, ...]] = itemgetter(*names)

    def run(self, connection: sqlite3.Connection, values: Mapping[str, Any]) -> int:
        """How many rows it has changed."""
        return connection.execute(self.text, self.values_of(values)).rowcount


INSERT_THREAD = Change("""
    INSERT INTO app_threads
        (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at)
    VALUES (:thread_id, :owner, :status, :metadata, :config, :ttl_strategy, :ttl_minutes, :created_at, :updated_at)
    ON CONFLICT (thread_id) DO NOTHING
""")


def _insert_run(columns: Sequence[str]) -> Change:
    return Change(f"""
    INSERT INTO app_runs ({", ".join(columns)}) VALUES ({", ".join(f":{column}" for column in columns)})
    ON CONFLICT (run_id) DO NOTHING
    """)


START_RUN = _insert_run(
    ("run_id", "thread_id", "owner", "worker_id", "status", "metadata", "kwargs", "created_at", "started_at")
)
"""Of the columns that a new run fills; the others have their defaults."""

INSERT_RUN = _insert_run(RUN_COLUMNS)
ATTACH_RUN = Change(f"""
    UPDATE app_runs SET thread_id = :thread_id WHERE run_id = :run_id AND thread_id IS NULL AND {ACTIVE}
""")


def _finish_run(*, with_metadata: bool, tied: bool) -> Change:
    metadata = "metadata = :metadata," if with_metadata else ""
    tie = """, thread_id = (
            SELECT t.thread_id FROM app_threads t WHERE t.thread_id = :thread_id AND t.owner IS app_runs.owner
        )"""
    return Change(f"""
    UPDATE app_runs SET
        status = :status, finished_at = :finished_at, error = :error, http_status = :http_status, {metadata}
        checkpoint_count = :checkpoint_count, first_checkpoint_id = :first_checkpoint_id,
        last_checkpoint_id = :last_checkpoint_id, paused = :paused{"" if tied else tie}
    WHERE run_id = :run_id AND worker_id = :worker_id AND {ACTIVE}
        AND {"(thread_id IS NOT NULL OR :thread_id IS NULL)" if tied else "thread_id IS NULL"}
    """)


FINISH_RUN, FINISH_RUN_WITH_METADATA = (
    tuple(_finish_run(with_metadata=with_metadata, tied=tied) for tied in (True, False))
    for with_metadata in (False, True)
)
"""One for a run that has its thread, as nearly all have by then, and one that ties it to the thread: to set a column,
even to what it is, costs a look at its indexes and at the thread. One of the two changes the row."""

KEEP_LATE_OUTCOME = """
    UPDATE app_runs SET late_outcome = :late_outcome WHERE run_id = :run_id AND late_outcome IS NULL
"""
SETTLE_THREAD = Change("""
    UPDATE app_threads SET status = :thread_status, updated_at = max(updated_at, :finished_at)
    WHERE thread_id = (SELECT thread_id FROM app_runs WHERE run_id = :run_id)
""")
SETTLE_THREADS_OF_WORKER = f"""
    UPDATE app_threads SET status = 'interrupted', updated_at = max(updated_at, :now)
    WHERE thread_id IN (SELECT thread_id FROM app_runs WHERE worker_id = :worker_id AND {ACTIVE})
"""
INTERRUPT_RUNS = f"""
    UPDATE app_runs SET status = 'interrupted', finished_at = :now, error = :error
    WHERE worker_id = :worker_id AND {ACTIVE}
"""
CHANGE_QUEUE = Change("""
    UPDATE app_threads SET queue = :wanted, fence = fence + :taken WHERE thread_id = :thread_id AND queue = :seen
""")
RELEASE_THREAD = Change("""
    UPDATE app_threads SET queue = (SELECT json_group_array(value) FROM json_each(queue) WHERE value <> :run_id)
    WHERE thread_id = :thread_id AND queue LIKE '%' || :run_id || '%'
""")
FEW = 1_000
"""Rows with the same key and value in their metadata, which are looked at one by one."""

STOPPED = ("interrupted", "error")
FAILED = ("error", "timeout", "interrupted")
IS_BUSY = f"EXISTS (SELECT 1 FROM app_runs r WHERE r.thread_id = t.thread_id AND r.{ACTIVE})"
SELECT_THREADS = f"""
    SELECT thread_id, owner, CASE WHEN {IS_BUSY} THEN 'busy' ELSE status END AS status, metadata, config,
        ttl_strategy, ttl_minutes, created_at, updated_at
    FROM app_threads t
"""
SELECT_RUNS = f"SELECT {', '.join(RUN_COLUMNS)} FROM app_runs t"
_HAS_METADATA = """
    EXISTS (SELECT 1 FROM json_each(t.metadata) j WHERE j.key = :{name}_key AND {test})
"""


def where_one(id_column: str, value: str, owner: OwnerFilter) -> tuple[str, dict[str, Any]]:
    where, values = f"WHERE {id_column} = :id", {"id": value}
    if checked_owner(owner) is not ANY_OWNER:
        return f"{where} AND owner IS :owner", {**values, "owner": owner}
    return where, values


def with_few_ids(connection: sqlite3.Connection, query: Query, *, table: str, id_column: str) -> Query:
    """The query; where one of its metadata is that of few rows, for their ids alone.

    What many rows have, a page of them is soon found in the order that is asked for.
    """
    for key, wanted in (query.metadata or {}).items():
        value = wanted[:INDEXED] if isinstance(wanted, str) else wanted
        statement = f"SELECT {id_column} FROM {table}_metadata WHERE key = ? AND value IS ? LIMIT ?"
        ids = {row_id for (row_id,) in connection.execute(statement, (key, value, FEW + 1))}
        if len(ids) <= FEW:
            return replace(query, ids=tuple(ids if query.ids is None else ids & set(query.ids)))
    return query


def search_clauses(query: Query, *, id_column: str, busy: str | None) -> tuple[str, dict[str, Any]]:
    """The WHERE, ORDER BY and LIMIT of a search; every value is a parameter."""
    conditions = ["TRUE"]
    values: dict[str, Any] = {"limit": query.limit, "offset": query.offset}

    def any_of(column: str, wanted: tuple[str, ...], name: str) -> str:
        values[name] = json.dumps(wanted)
        return f"{column} IN (SELECT value FROM json_each(:{name}))"

    if query.statuses is not None:
        alone = query.thread_id is None and query.ids is None and query.owner is ANY_OWNER
        conditions.append(_has_status(query.statuses, busy=busy, indexed=alone))
    if query.ids is not None:
        conditions.append(any_of(f"t.{id_column}", query.ids, "ids"))
    if query.thread_id is not None:
        conditions.append("t.thread_id = :thread_id")
        values["thread_id"] = query.thread_id
    if query.owner is None:
        conditions.append("t.owner IS NULL")
    elif query.owner is not ANY_OWNER:
        conditions.append("t.owner = :owner")
        values["owner"] = query.owner
    if query.created_after is not None:
        conditions.append("t.created_at >= :created_after")
        values["created_after"] = text_of(query.created_after)
    if query.created_before is not None:
        conditions.append("t.created_at < :created_before")
        values["created_before"] = text_of(query.created_before)
    for number, (key, wanted) in enumerate((query.metadata or {}).items()):
        name = f"metadata_{number}"
        conditions.append(_HAS_METADATA.format(name=name, test=_json_test(wanted, f":{name}_value")))
        values |= {f"{name}_key": key, f"{name}_value": wanted}
    direction = "DESC" if query.descending else "ASC"
    nulls = ""  # said only where there are any: it keeps SQLite from reading the order from an index
    if query.sort_by == "finished_at":
        nulls = " NULLS FIRST" if query.descending else " NULLS LAST"
    return (
        f"WHERE {' AND '.join(conditions)} ORDER BY t.{query.sort_by} {direction}{nulls}, t.{id_column} {direction} "
        "LIMIT :limit OFFSET :offset"
    ), values


def _has_status(statuses: tuple[str, ...], *, busy: str | None, indexed: bool) -> str:
    """The statuses are known words and stand in the text, and so does, if this index is to be used, the condition of
    the partial index that has them all: SQLite compares the texts (https://www.sqlite.org/partialindex.html). Beside a
    thread or an owner it is not to be used: SQLite, which does not know how many rows are which, would prefer it.
    """
    settled = [status for status in statuses if status != "busy"]
    has_settled = _is_one_of(settled)
    for partial in (STOPPED if busy else FAILED, ACTIVE_STATUSES):
        if indexed and settled and set(settled) <= set(partial):
            has_settled += f" AND {_is_one_of(partial)}"
    if busy is None:
        return has_settled
    if "busy" not in statuses:
        return f"{has_settled} AND NOT {busy}"
    is_busy = f"t.thread_id IN (SELECT r.thread_id FROM app_runs r WHERE r.{ACTIVE})"  # from the few that are active
    return f"({is_busy} OR {has_settled})" if settled else is_busy


def _is_one_of(statuses: Sequence[str]) -> str:
    return "t.status IN (" + ", ".join(f"'{status}'" for status in statuses) + ")"


def _json_test(wanted: object, parameter: str) -> str:
    """How json_each's columns show a scalar (https://www.sqlite.org/json1.html#jeach)."""
    if wanted is None:
        return "j.type = 'null'"
    if isinstance(wanted, bool):
        return f"j.type = '{'true' if wanted else 'false'}'"
    if isinstance(wanted, str):
        return f"j.type = 'text' AND j.atom = {parameter}"
    return f"j.type IN ('integer', 'real') AND j.atom = {parameter}"


def run_values(run: RunRow) -> dict[str, Any]:
    return {
        **run,
        "metadata": json_text(run["metadata"]),
        "kwargs": json_text(run["kwargs"]),
        "error": None if run["error"] is None else json.dumps(run["error"]),
        "late_outcome": None if run["late_outcome"] is None else json_text(run["late_outcome"]),
        "created_at": text_of(run["created_at"]),
        "started_at": text_of(run["started_at"]),
        "finished_at": None if run["finished_at"] is None else text_of(run["finished_at"]),
    }


def run_of(row: Any) -> RunRow:
    values = dict(zip(RUN_COLUMNS, row, strict=True))
    return cast(
        "RunRow",
        {
            **values,
            "metadata": json.loads(values["metadata"]),
            "kwargs": json.loads(values["kwargs"]),
            "error": None if values["error"] is None else json.loads(values["error"]),
            "late_outcome": None if values["late_outcome"] is None else json.loads(values["late_outcome"]),
            "created_at": datetime.fromisoformat(values["created_at"]),
            "started_at": datetime.fromisoformat(values["started_at"]),
            "finished_at": None if values["finished_at"] is None else datetime.fromisoformat(values["finished_at"]),
            "paused": bool(values["paused"]),
        },
    )


def thread_values(thread: ThreadRow) -> dict[str, Any]:
    ttl = thread["ttl"]
    return {
        "thread_id": thread["thread_id"],
        "owner": thread["owner"],
        "status": thread["status"],
        "metadata": json_text(thread["metadata"]),
        "config": json_text(thread["config"]),
        "ttl_strategy": None if ttl is None else ttl["strategy"],
        "ttl_minutes": None if ttl is None else ttl["ttl"],
        "created_at": text_of(thread["created_at"]),
        "updated_at": text_of(thread["updated_at"]),
    }


def ids_text(ids: Sequence[str]) -> str:
    """As SQLite's own `json_group_array` writes it: queues are compared as texts."""
    return json.dumps(ids, separators=(",", ":"))


def queue_of(connection: sqlite3.Connection, text: str) -> Queue:
    """The queue that a thread's row has in this text."""
    run_ids = json.loads(text)
    statement = f"SELECT run_id FROM app_runs WHERE run_id IN (SELECT value FROM json_each(?)) AND {ACTIVE}"
    return Queue(tuple(run_ids), frozenset(run_id for (run_id,) in connection.execute(statement, (text,))))


def thread_of(row: Any) -> ThreadRow:
    thread_id, owner, status, metadata, config, strategy, minutes, created_at, updated_at = row
    return ThreadRow(
        thread_id=thread_id,
        owner=owner,
        status=status,
        metadata=json.loads(metadata),
        config=json.loads(config),
        ttl=None if strategy is None else ThreadTTL(strategy=strategy, ttl=minutes),
        created_at=datetime.fromisoformat(created_at),
        updated_at=datetime.fromisoformat(updated_at),
    )


def json_text(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()


@functools.lru_cache(maxsize=16)  # a run and its thread begin at one time, which each has twice
def text_of(moment: datetime) -> str:
    """Of one width, so that text sorts as time does."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
