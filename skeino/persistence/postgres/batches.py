"""The SQL of writes that are written together: each kind of write is one statement over arrays.

What a statement for many stores is what the one for one would have stored for each of them, in their order. It locks
rows in the order of their ids: other processes write batches, too, and would otherwise wait for this one in a circle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from skeino.persistence.postgres.arrays import ARRAYS
from skeino.persistence.postgres.statements import (
    ACTIVE,
    ATTACH_RUN,
    CLAIM_THREAD,
    FINISH_RUN,
    INTERRUPT_RUNS,
    RELEASE_THREAD,
    START_READING_RUN,
    START_RUN,
    START_RUN_ON_THREAD,
)

Values = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of write. One of a kind is written by `one`, several by `many`.

    Without `one`, one is written by `many`. Without `many`, it is written after all that came before it, and before
    what comes after; and without both, nothing is.
    """

    one: str | None
    many: str | None
    arrays: Callable[[Sequence[Values]], dict[str, Any]]
    """The values of several, as `many` takes them."""
    of_one: Callable[[Values], Values] = dict
    """The values of one, as `one` takes them."""
    goes_last: bool = False
    """Whether it is written after the others that came with it: the end of a run, for which no response waits."""


def given(name: str, types: Mapping[str, str]) -> str:
    """The common table `name`: a row for each write, whose columns come as binary arrays, and its `position`."""
    arrays = ", ".join(f"%({column})b::{of_type}[]" for column, of_type in types.items())
    return f"""{name} AS MATERIALIZED (
        SELECT {", ".join(types)}, position
        FROM patience CROSS JOIN unnest({arrays}) WITH ORDINALITY AS given ({", ".join(types)}, position)
    )"""


# How long the statement, and nothing after it, waits for a lock; read before the first row is locked.
PATIENCE: Final = """
    WITH patience AS MATERIALIZED (
        SELECT set_config('lock_timeout', coalesce(%(patience)s, current_setting('lock_timeout')), true)
    )"""

# `ACTIVE`, in a form that keeps the planner off the index `app_runs_active`: between two vacuums that one is full of
# runs that have ended, and the more there are, the longer a scan of it takes.
_IS_ACTIVE: Final = f"r.status || '' {ACTIVE.removeprefix('status ')}"

_START: Final = {
    "run_id": "uuid",
    "thread_id": "text",
    "owner": "text",
    "worker_id": "text",
    "status": "text",
    "metadata": "jsonb",
    "kwargs": "jsonb",
    "created_at": "timestamptz",
    "started_at": "timestamptz",
}
"""The columns that a new run fills; the others have their defaults."""

_ATTACH: Final = {"run_id": "uuid", "thread_id": "text", "owner": "text", "created_at": "timestamptz"}

_FINISH: Final = {
    "run_id": "uuid",
    "worker_id": "text",
    "status": "text",
    "finished_at": "timestamptz",
    "thread_id": "text",
    "thread_status": "text",
    "error": "jsonb",
    "http_status": "integer",
    "metadata": "jsonb",
    "checkpoint_count": "integer",
    "first_checkpoint_id": "text",
    "last_checkpoint_id": "text",
    "paused": "boolean",
}


# How rows of the tables are found: by subqueries of their own, or `= ANY` of an array, and never by a join. Those take
# an index, whatever the planner knows of the table; a join with a table that has grown since it was last analysed
# reads all of it, for every batch. `IN (SELECT …)` is a join, too; with `IS TRUE` behind it, it is a look-up in a hash.
_HAS_NO_RUN: Final = "(SELECT TRUE FROM app_runs r WHERE r.run_id = given.run_id) IS NULL"
_HAS_OWN_THREAD: Final = """(
        (SELECT t.owner IS NOT DISTINCT FROM given.owner FROM app_threads t WHERE t.thread_id = given.thread_id)
        OR (given.thread_id, given.owner IS NULL, coalesce(given.owner, ''))
            IN (SELECT thread_id, owner IS NULL, coalesce(owner, '') FROM created)
    )"""


def _created_threads(condition: str) -> str:
    """As `statements._with_own_thread`: the first to name a new thread makes it, and owns it."""
    return f"""created AS (
        INSERT INTO app_threads
            (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at)
        SELECT DISTINCT ON (thread_id) thread_id, owner, 'idle', '{{}}'::jsonb, '{{}}'::jsonb,
            %(ttl_strategy)s::text, %(ttl_minutes)s::double precision, created_at, created_at
        FROM given WHERE {condition}
        ORDER BY thread_id, position
        ON CONFLICT (thread_id) DO NOTHING
        RETURNING thread_id, owner
    )"""


START_RUNS: Final = f"""
    {PATIENCE}, {given("given", _START)}
    INSERT INTO app_runs ({", ".join(_START)})
    SELECT {", ".join(_START)} FROM given ORDER BY run_id
    ON CONFLICT (run_id) DO NOTHING
"""
START_READING_RUNS: Final = f"""
    {PATIENCE}, {given("given", _START)}
    INSERT INTO app_runs ({", ".join(_START)})
    SELECT {", ".join("NULL" if column == "thread_id" else column for column in _START)} FROM given
    WHERE (SELECT t.owner IS NOT DISTINCT FROM given.owner FROM app_threads t WHERE t.thread_id = given.thread_id)
        IS NOT FALSE
    ORDER BY run_id
    ON CONFLICT (run_id) DO NOTHING
    RETURNING run_id::text
"""
START_RUNS_ON_THREADS: Final = f"""
    {PATIENCE}, {given("given", _START)},
    {_created_threads(_HAS_NO_RUN)}
    INSERT INTO app_runs ({", ".join(_START)})
    SELECT {", ".join(_START)} FROM given WHERE {_HAS_OWN_THREAD}
    ORDER BY thread_id, run_id
    ON CONFLICT (run_id) DO NOTHING
    RETURNING run_id::text
"""
ATTACH_RUNS: Final = f"""
    {PATIENCE}, {given("given", _ATTACH)},
    {_created_threads("TRUE")}, found AS MATERIALIZED (
        SELECT run_id, thread_id FROM given WHERE {_HAS_OWN_THREAD}
    ), attached AS (
        UPDATE app_runs r SET thread_id = (SELECT thread_id FROM found WHERE found.run_id = r.run_id)
        WHERE r.run_id = ANY(ARRAY(SELECT run_id FROM found)) AND r.thread_id IS NULL AND {_IS_ACTIVE}
    )
    SELECT run_id::text FROM found
"""
# Of several runs on one thread the first has it, if nobody is in its queue.
CLAIM_THREADS: Final = f"""
    {PATIENCE}, {given("given", _ATTACH)}, first AS MATERIALIZED (
        SELECT DISTINCT ON (thread_id) thread_id, run_id, owner FROM given ORDER BY thread_id, position
    ), created AS (
        INSERT INTO app_threads
            (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at, queue)
        SELECT DISTINCT ON (thread_id) thread_id, owner, 'idle', '{{}}'::jsonb, '{{}}'::jsonb,
            %(ttl_strategy)s::text, %(ttl_minutes)s::double precision, created_at, created_at, ARRAY[run_id]
        FROM given ORDER BY thread_id, position
        ON CONFLICT (thread_id) DO NOTHING
        RETURNING thread_id, owner, fence
    ), taken AS (
        UPDATE app_threads t SET
            queue = ARRAY[(SELECT f.run_id FROM first f WHERE f.thread_id = t.thread_id)], fence = t.fence + 1
        WHERE t.thread_id = ANY(ARRAY(SELECT thread_id FROM first)) AND t.queue = '{{}}'
            AND (SELECT f.owner IS NOT DISTINCT FROM t.owner FROM first f WHERE f.thread_id = t.thread_id)
        RETURNING t.thread_id, t.fence
    ), found AS MATERIALIZED (
        SELECT run_id, thread_id FROM given WHERE {_HAS_OWN_THREAD}
    ), attached AS (
        UPDATE app_runs r SET thread_id = (SELECT thread_id FROM found WHERE found.run_id = r.run_id)
        WHERE r.run_id = ANY(ARRAY(SELECT run_id FROM found)) AND r.thread_id IS NULL AND {_IS_ACTIVE}
    )
    SELECT run_id::text, CASE WHEN run_id = (SELECT f.run_id FROM first f WHERE f.thread_id = found.thread_id) THEN
        coalesce(
            (SELECT c.fence FROM created c WHERE c.thread_id = found.thread_id),
            (SELECT t.fence FROM taken t WHERE t.thread_id = found.thread_id)
        )
    END AS fence
    FROM found
"""
RELEASE_THREADS: Final = f"""
    {PATIENCE}, {given("given", {"run_id": "uuid", "thread_id": "text"})}
    UPDATE app_threads t SET queue = ARRAY(
        SELECT waiting FROM unnest(t.queue) WITH ORDINALITY AS queued (waiting, place)
        WHERE waiting <> ALL(ARRAY(SELECT g.run_id FROM given g WHERE g.thread_id = t.thread_id)) ORDER BY place
    )
    WHERE t.thread_id = ANY(ARRAY(SELECT thread_id FROM given)) AND t.queue <> '{{}}'
"""


def _finish(column: str) -> str:
    """A column of the write at a position, out of its array: to look for its row in `given` takes longer."""
    return f"(%({column})b::{_FINISH[column]}[])[position]"


_POSITION: Final = "array_position(%(run_id)b::uuid[], r.run_id)"

# Of several runs on one thread the last says how it is left.
FINISH_RUNS: Final = f"""
    {PATIENCE}, {given("given", {"run_id": "uuid", "worker_id": "text"})}, finished AS (
        UPDATE app_runs r SET (
            status, finished_at, error, http_status, metadata, checkpoint_count, first_checkpoint_id,
            last_checkpoint_id, paused, thread_id
        ) = (
            SELECT {_finish("status")}, {_finish("finished_at")}, {_finish("error")}, {_finish("http_status")},
                r.metadata || {_finish("metadata")}, {_finish("checkpoint_count")}, {_finish("first_checkpoint_id")},
                {_finish("last_checkpoint_id")}, {_finish("paused")}, coalesce(r.thread_id, (
                    SELECT t.thread_id FROM app_threads t
                    WHERE t.thread_id = {_finish("thread_id")} AND t.owner IS NOT DISTINCT FROM r.owner
                ))
            FROM (SELECT {_POSITION} AS position OFFSET 0) AS write
        )
        WHERE r.run_id = ANY(%(run_id)b::uuid[]) AND {_IS_ACTIVE}
            AND ((r.run_id, r.worker_id) IN (SELECT g.run_id, g.worker_id FROM given g)) IS TRUE
        RETURNING r.run_id, r.thread_id, {_POSITION} AS position
    ), ending AS MATERIALIZED (
        SELECT thread_id, (array_agg({_finish("thread_status")} ORDER BY position DESC))[1] AS status,
            max({_finish("finished_at")}) AS finished_at
        FROM finished WHERE {_finish("thread_status")} IS NOT NULL AND thread_id IS NOT NULL
        GROUP BY thread_id
    ), endings AS MATERIALIZED (
        SELECT array_agg(thread_id) AS threads, array_agg(status) AS statuses, array_agg(finished_at) AS times
        FROM ending
    ), locked AS MATERIALIZED (
        SELECT thread_id FROM app_threads WHERE thread_id = ANY(ARRAY(SELECT thread_id FROM ending))
        ORDER BY thread_id FOR NO KEY UPDATE
    ), settled AS (
        UPDATE app_threads t SET (status, updated_at) = (
            SELECT statuses[position], greatest(t.updated_at, times[position])
            FROM (SELECT *, array_position(threads, t.thread_id) AS position FROM endings OFFSET 0) AS write
        )
        WHERE t.thread_id = ANY(ARRAY(SELECT thread_id FROM locked))
    )
    SELECT run_id::text FROM finished
"""


def _columns(types: Mapping[str, str]) -> Callable[[Sequence[Values]], dict[str, Any]]:
    arrays = {column: ARRAYS[of_type] for column, of_type in types.items()}
    return lambda writes: {column: array([values[column] for values in writes]) for column, array in arrays.items()}


def _with_ttl(types: Mapping[str, str]) -> Callable[[Sequence[Values]], dict[str, Any]]:
    """As `_columns`, and the `ttl` of new threads, which is the same for all of a process."""
    ttl = ("ttl_strategy", "ttl_minutes")
    return lambda writes: {**_columns(types)(writes), **{name: writes[0][name] for name in ttl}}


START: Final = Kind(START_RUN, START_RUNS, _columns(_START))
START_READING: Final = Kind(START_READING_RUN, START_READING_RUNS, _columns(_START))
START_ON_THREAD: Final = Kind(START_RUN_ON_THREAD, START_RUNS_ON_THREADS, _with_ttl(_START))
ATTACH: Final = Kind(ATTACH_RUN, ATTACH_RUNS, _with_ttl(_ATTACH))
CLAIM: Final = Kind(CLAIM_THREAD, CLAIM_THREADS, _with_ttl(_ATTACH))
RELEASE: Final = Kind(RELEASE_THREAD, RELEASE_THREADS, _columns({"run_id": "uuid", "thread_id": "text"}))
FINISH: Final = Kind(FINISH_RUN, FINISH_RUNS, _columns(_FINISH), goes_last=True)
INTERRUPT: Final = Kind(INTERRUPT_RUNS, None, _columns({}))

NOTHING: Final = Kind(None, None, _columns({}))
"""To wait for what came before: calls that were cancelled, but whose writes are on their way."""
