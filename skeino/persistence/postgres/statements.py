"""The SQL of the PostgreSQL `MetadataStore`, and how its rows read."""

from __future__ import annotations

import json
from datetime import UTC
from typing import Any, cast

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from skeino.persistence.queries import Query, checked_owner
from skeino.persistence.rows import ANY_OWNER, OwnerFilter, RunRow, ThreadRow, ThreadTTL

RUN_COLUMNS = tuple(RunRow.__annotations__)
_JSON = ("metadata", "kwargs", "error", "late_outcome")
ACTIVE = "status IN ('pending', 'running')"

INSERT_THREAD = """
    INSERT INTO app_threads
        (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at)
    VALUES (%(thread_id)s, %(owner)s, %(status)s, %(metadata)s, %(config)s, %(ttl_strategy)s, %(ttl_minutes)s,
        %(created_at)s, %(updated_at)s)
    ON CONFLICT (thread_id) DO NOTHING
    RETURNING thread_id
"""
START_RUN = f"""
    INSERT INTO app_runs ({", ".join(RUN_COLUMNS)})
    VALUES ({", ".join(f"%({column})s" for column in RUN_COLUMNS)})
    ON CONFLICT (run_id) DO NOTHING
"""
LOCK_THREADS = "SELECT thread_id, owner FROM app_threads WHERE thread_id = ANY(%s) ORDER BY thread_id FOR KEY SHARE"
START_READING_RUN = f"""
    INSERT INTO app_runs ({", ".join(RUN_COLUMNS)})
    SELECT {", ".join("NULL" if column == "thread_id" else f"%({column})s" for column in RUN_COLUMNS)}
    WHERE NOT EXISTS (
        SELECT FROM app_threads WHERE thread_id = %(thread_id)s AND owner IS DISTINCT FROM %(owner)s
    )
    ON CONFLICT (run_id) DO NOTHING
    RETURNING run_id
"""


def _with_own_thread(condition: str) -> str:
    """The thread, made if there is none and the condition holds; nothing if it is another owner's.

    A thread that another transaction commits meanwhile is in neither part, for it is newer than the statement's
    snapshot: then nothing is found, and the statement is to be repeated.
    """
    return f"""
    WITH created AS (
        INSERT INTO app_threads
            (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at)
        SELECT %(thread_id)s, %(owner)s, 'idle', '{{}}', '{{}}', %(ttl_strategy)s, %(ttl_minutes)s,
            %(created_at)s, %(created_at)s
        WHERE {condition}
        ON CONFLICT (thread_id) DO NOTHING
        RETURNING thread_id
    ), thread AS (
        SELECT thread_id FROM created
        UNION ALL
        SELECT thread_id FROM app_threads WHERE thread_id = %(thread_id)s AND owner IS NOT DISTINCT FROM %(owner)s
    )
    """


START_RUN_ON_THREAD = f"""
    {_with_own_thread("NOT EXISTS (SELECT FROM app_runs WHERE run_id = %(run_id)s)")}
    INSERT INTO app_runs ({", ".join(RUN_COLUMNS)})
    SELECT {", ".join("thread.thread_id" if column == "thread_id" else f"%({column})s" for column in RUN_COLUMNS)}
    FROM thread
    ON CONFLICT (run_id) DO NOTHING
    RETURNING run_id
"""
ATTACH_RUN = f"""
    {_with_own_thread("TRUE")}, attached AS (
        UPDATE app_runs SET thread_id = thread.thread_id FROM thread
        WHERE run_id = %(run_id)s AND app_runs.thread_id IS NULL AND {ACTIVE}
    )
    SELECT thread_id FROM thread
"""
CLAIM_THREAD = f"""
    WITH created AS (
        INSERT INTO app_threads
            (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at, queue)
        VALUES (%(thread_id)s, %(owner)s, 'idle', '{{}}', '{{}}', %(ttl_strategy)s, %(ttl_minutes)s,
            %(created_at)s, %(created_at)s, ARRAY[%(run_id)s::uuid])
        ON CONFLICT (thread_id) DO NOTHING
        RETURNING fence
    ), taken AS (
        UPDATE app_threads SET queue = ARRAY[%(run_id)s::uuid], fence = fence + 1
        WHERE thread_id = %(thread_id)s AND queue = '{{}}' AND owner IS NOT DISTINCT FROM %(owner)s
        RETURNING fence
    ), thread AS (
        SELECT fence FROM created
        UNION ALL
        SELECT fence FROM taken
        UNION ALL
        SELECT NULL FROM app_threads WHERE thread_id = %(thread_id)s AND owner IS NOT DISTINCT FROM %(owner)s
    ), attached AS (
        UPDATE app_runs SET thread_id = %(thread_id)s
        WHERE run_id = %(run_id)s AND thread_id IS NULL AND {ACTIVE} AND EXISTS (SELECT FROM thread)
    )
    SELECT max(fence) AS fence FROM thread HAVING count(*) > 0
"""
RELEASE_THREAD = """
    UPDATE app_threads SET queue = array_remove(queue, %(run_id)s::uuid)
    WHERE thread_id = %(thread_id)s AND %(run_id)s::uuid = ANY(queue)
"""
# One snapshot: whoever stands in the queue had its row before it came there.
SELECT_QUEUE = f"""
    SELECT queue::text[] AS queue, ARRAY(
        SELECT r.run_id::text FROM app_runs r WHERE r.run_id = ANY(t.queue) AND r.{ACTIVE}
    ) AS active
    FROM app_threads t WHERE thread_id = %(thread_id)s
"""
CHANGE_QUEUE = """
    UPDATE app_threads SET queue = %(wanted)s::uuid[], fence = fence + %(taken)s::int
    WHERE thread_id = %(thread_id)s AND queue = %(seen)s::uuid[]
    RETURNING fence
"""
FINISH_RUN = f"""
    WITH finished AS (
        UPDATE app_runs SET
            status = %(status)s, finished_at = %(finished_at)s, error = %(error)s, http_status = %(http_status)s,
            metadata = metadata || %(metadata)s, checkpoint_count = %(checkpoint_count)s,
            first_checkpoint_id = %(first_checkpoint_id)s, last_checkpoint_id = %(last_checkpoint_id)s,
            paused = %(paused)s,
            thread_id = coalesce(thread_id, (
                SELECT t.thread_id FROM app_threads t
                WHERE t.thread_id = %(thread_id)s AND t.owner IS NOT DISTINCT FROM app_runs.owner
            ))
        WHERE run_id = %(run_id)s AND worker_id = %(worker_id)s AND {ACTIVE}
        RETURNING thread_id
    ), settled AS (
        UPDATE app_threads SET
            status = %(thread_status)s, updated_at = greatest(updated_at, %(finished_at)s)
        FROM finished
        WHERE app_threads.thread_id = finished.thread_id AND %(thread_status)s::text IS NOT NULL
    )
    SELECT 1 AS done FROM finished
"""
# For an end that changed nothing. What another worker says of the run, and the same end repeated, is not kept.
KEEP_LATE_OUTCOME = f"""
    WITH ended AS (
        SELECT status = %(status)s AND finished_at = %(finished_at)s AS so FROM app_runs
        WHERE run_id = %(run_id)s AND worker_id = %(worker_id)s AND NOT ({ACTIVE})
    ), kept AS (
        UPDATE app_runs SET late_outcome = %(late_outcome)s
        WHERE run_id = %(run_id)s AND late_outcome IS NULL AND EXISTS (SELECT FROM ended WHERE NOT so)
    )
    SELECT 1 AS done FROM ended WHERE so
"""
INTERRUPT_RUNS = f"""
    WITH finished AS (
        UPDATE app_runs SET status = 'interrupted', finished_at = %(now)s, error = %(error)s
        WHERE worker_id = %(worker_id)s AND {ACTIVE}
        RETURNING thread_id
    ), settled AS (
        UPDATE app_threads SET status = 'interrupted', updated_at = greatest(updated_at, %(now)s)
        WHERE thread_id IN (SELECT thread_id FROM finished)
    )
    SELECT count(*) AS number FROM finished
"""
IS_BUSY = f"EXISTS (SELECT FROM app_runs r WHERE r.thread_id = t.thread_id AND r.{ACTIVE})"
# JSON comes as text: jsonb spells 1e23 with all its digits, and only our own reading makes a float of it again.
THREAD_FIELDS = f"""
    thread_id, owner, CASE WHEN {IS_BUSY} THEN 'busy' ELSE status END AS status, metadata::text AS metadata,
    config::text AS config, ttl_strategy, ttl_minutes, created_at, updated_at
"""
RUN_FIELDS = ", ".join(f"{column}::text AS {column}" if column in _JSON else column for column in RUN_COLUMNS)
SELECT_THREADS = f"SELECT {THREAD_FIELDS} FROM app_threads t"
SELECT_RUNS = f"SELECT {RUN_FIELDS} FROM app_runs t"


def where_one(id_column: str, value: str, owner: OwnerFilter) -> tuple[str, dict[str, Any]]:
    where, values = f"WHERE {id_column} = %(id)s", {"id": value}
    if checked_owner(owner) is not ANY_OWNER:
        return f"{where} AND owner IS NOT DISTINCT FROM %(owner)s", {**values, "owner": owner}
    return where, values


def search_clauses(query: Query, *, id_column: str, id_type: str, busy: str | None) -> tuple[str, dict[str, Any]]:
    """The WHERE, ORDER BY and LIMIT of a search; every value is a parameter."""
    conditions = ["TRUE"]
    values: dict[str, Any] = {"limit": query.limit, "offset": query.offset}
    if query.statuses is not None:
        conditions.append(_has_status(query.statuses, busy=busy))
    if query.ids is not None:
        conditions.append(f"t.{id_column} = ANY(%(ids)s::{id_type}[])")
        values["ids"] = list(query.ids)
    if query.thread_id is not None:
        conditions.append("t.thread_id = %(thread_id)s")
        values["thread_id"] = query.thread_id
    if query.owner is None:
        conditions.append("t.owner IS NULL")
    elif query.owner is not ANY_OWNER:
        conditions.append("t.owner = %(owner)s")  # IS NOT DISTINCT FROM uses no index
        values["owner"] = query.owner
    if query.created_after is not None:
        conditions.append("t.created_at >= %(created_after)s")
        values["created_after"] = query.created_after
    if query.created_before is not None:
        conditions.append("t.created_at < %(created_before)s")
        values["created_before"] = query.created_before
    if query.metadata is not None:
        conditions.append("t.metadata @> %(metadata)s AND t.metadata <> '{}'")  # the index has no others
        values["metadata"] = Jsonb(query.metadata)
    direction = "DESC NULLS FIRST" if query.descending else "ASC NULLS LAST"
    return (
        f"WHERE {' AND '.join(conditions)} ORDER BY t.{query.sort_by} {direction}, t.{id_column} {direction} "
        "LIMIT %(limit)s OFFSET %(offset)s"
    ), values


def _has_status(statuses: tuple[str, ...], *, busy: str | None) -> str:
    """The statuses are known words and stand in the text, where the planner sees which partial index has them."""
    settled = [f"'{status}'" for status in statuses if status != "busy"]
    has_settled = f"t.status IN ({', '.join(settled)})" if settled else "FALSE"
    if busy is None:
        return has_settled
    if "busy" not in statuses:
        return f"{has_settled} AND NOT {busy}"
    # An array is made once, and its threads looked up: with IN, the planner may go through all threads instead.
    is_busy = f"t.thread_id = ANY(ARRAY(SELECT r.thread_id FROM app_runs r WHERE r.{ACTIVE}))"
    return f"({is_busy} OR {has_settled})" if settled else is_busy


def run_of(row: DictRow) -> RunRow:
    return cast(
        "RunRow",
        {
            **row,
            "run_id": str(row["run_id"]),
            "metadata": _json_of(row["metadata"]),
            "kwargs": _json_of(row["kwargs"]),
            "error": None if row["error"] is None else _json_of(row["error"]),
            "late_outcome": None if row["late_outcome"] is None else _json_of(row["late_outcome"]),
            "created_at": row["created_at"].astimezone(UTC),
            "started_at": row["started_at"].astimezone(UTC),
            "finished_at": None if row["finished_at"] is None else row["finished_at"].astimezone(UTC),
        },
    )


def run_values(run: RunRow) -> dict[str, Any]:
    return {
        **run,
        "metadata": Jsonb(run["metadata"]),
        "kwargs": Jsonb(run["kwargs"]),
        "error": None if run["error"] is None else Jsonb(run["error"]),
        "late_outcome": None if run["late_outcome"] is None else Jsonb(run["late_outcome"]),
    }


def thread_values(thread: ThreadRow) -> dict[str, Any]:
    return {
        **thread,
        "metadata": Jsonb(thread["metadata"]),
        "config": Jsonb(thread["config"]),
        **ttl_values(thread["ttl"]),
    }


def ttl_values(ttl: ThreadTTL | None) -> dict[str, Any]:
    return {
        "ttl_strategy": None if ttl is None else ttl["strategy"],
        "ttl_minutes": None if ttl is None else ttl["ttl"],
    }


def thread_of(row: DictRow) -> ThreadRow:
    strategy, minutes = row.pop("ttl_strategy"), row.pop("ttl_minutes")
    return cast(
        "ThreadRow",
        {
            **row,
            "metadata": _json_of(row["metadata"]),
            "config": _json_of(row["config"]),
            "ttl": None if strategy is None else ThreadTTL(strategy=strategy, ttl=minutes),
            "created_at": row["created_at"].astimezone(UTC),
            "updated_at": row["updated_at"].astimezone(UTC),
        },
    )


def _json_of(text: str) -> Any:
    return json.loads(text, parse_int=_number)


def _number(digits: str) -> int | float:
    """An integer of more than 64 bits is none that was stored, but a float that jsonb has spelt out."""
    value = int(digits)
    return value if -(2**63) <= value < 2**63 else float(digits)
