"""`MetadataStore`: threads and runs in the tables `app_threads` and `app_runs` of a PostgreSQL database.

A run's start and its end are one statement each, so one round trip and one commit. A thread's `busy` is not
stored: it is derived from the active runs, so nothing has to be put right when a process dies.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar, Unpack, cast

from psycopg.errors import DeadlockDetected, ForeignKeyViolation
from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from skeino.errors import (
    RunNotFoundError,
    StoreError,
    ThreadBusyError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from skeino.persistence.postgres.connections import PostgresDatabase
from skeino.persistence.protocol import RunSearch, ThreadSearch
from skeino.persistence.queries import (
    Query,
    checked_error,
    checked_finish,
    checked_owner,
    checked_ttl_change,
    new_run,
    new_thread,
    run_query,
    thread_query,
)
from skeino.persistence.rows import ANY_OWNER, OwnerFilter, RunError, RunFinish, RunRow, ThreadRow, ThreadTTL
from skeino.validation import validate_json_object, validate_run_id, validate_thread_id

T = TypeVar("T")

_RUN_COLUMNS = tuple(RunRow.__annotations__)
_ACTIVE = "status IN ('pending', 'running')"

INSERT_THREAD = """
    INSERT INTO app_threads
        (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at)
    VALUES (%(thread_id)s, %(owner)s, 'idle', %(metadata)s, %(config)s, %(ttl_strategy)s, %(ttl_minutes)s,
        %(created_at)s, %(updated_at)s)
    ON CONFLICT (thread_id) DO NOTHING
    RETURNING thread_id
"""
START_RUN = f"""
    INSERT INTO app_runs ({", ".join(_RUN_COLUMNS)})
    VALUES ({", ".join(f"%({column})s" for column in _RUN_COLUMNS)})
    ON CONFLICT (run_id) DO NOTHING
"""
START_READING_RUN = f"""
    INSERT INTO app_runs ({", ".join(_RUN_COLUMNS)})
    SELECT {", ".join("NULL" if column == "thread_id" else f"%({column})s" for column in _RUN_COLUMNS)}
    WHERE NOT EXISTS (
        SELECT FROM app_threads WHERE thread_id = %(thread_id)s AND owner IS DISTINCT FROM %(owner)s
    )
    ON CONFLICT (run_id) DO NOTHING
    RETURNING run_id
"""
# A thread that another transaction commits meanwhile is in neither `created` nor the statement's snapshot: the
# run is not inserted then, and the statement is repeated.
_OWN_THREAD = """
    WITH created AS (
        INSERT INTO app_threads (thread_id, owner, status, metadata, config, created_at, updated_at)
        VALUES (%(thread_id)s, %(owner)s, 'idle', '{}', '{}', %(created_at)s, %(created_at)s)
        ON CONFLICT (thread_id) DO NOTHING
        RETURNING thread_id
    ), thread AS (
        SELECT thread_id FROM created
        UNION ALL
        SELECT thread_id FROM app_threads WHERE thread_id = %(thread_id)s AND owner IS NOT DISTINCT FROM %(owner)s
    )
"""
START_RUN_ON_THREAD = f"""
    {_OWN_THREAD}
    INSERT INTO app_runs ({", ".join(_RUN_COLUMNS)})
    SELECT {", ".join("thread.thread_id" if column == "thread_id" else f"%({column})s" for column in _RUN_COLUMNS)}
    FROM thread
    ON CONFLICT (run_id) DO NOTHING
    RETURNING run_id
"""
ATTACH_RUN = f"""
    {_OWN_THREAD}, attached AS (
        UPDATE app_runs SET thread_id = thread.thread_id FROM thread
        WHERE run_id = %(run_id)s AND app_runs.thread_id IS NULL AND {_ACTIVE}
    )
    SELECT thread_id FROM thread
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
        WHERE run_id = %(run_id)s AND worker_id = %(worker_id)s AND {_ACTIVE}
        RETURNING thread_id
    ), settled AS (
        UPDATE app_threads SET
            status = %(thread_status)s, updated_at = greatest(updated_at, %(finished_at)s)
        FROM finished
        WHERE app_threads.thread_id = finished.thread_id AND %(thread_status)s::text IS NOT NULL
    )
    SELECT 1 AS done FROM finished
"""
WAS_FINISHED_SO = """
    SELECT 1 AS done FROM app_runs
    WHERE run_id = %(run_id)s AND worker_id = %(worker_id)s AND status = %(status)s AND finished_at = %(finished_at)s
"""
INTERRUPT_RUNS = f"""
    WITH finished AS (
        UPDATE app_runs SET status = 'interrupted', finished_at = %(now)s, error = %(error)s
        WHERE worker_id = %(worker_id)s AND {_ACTIVE}
        RETURNING thread_id
    ), settled AS (
        UPDATE app_threads SET status = 'interrupted', updated_at = greatest(updated_at, %(now)s)
        WHERE thread_id IN (SELECT thread_id FROM finished)
    )
    SELECT count(*) AS number FROM finished
"""
_IS_BUSY = f"EXISTS (SELECT FROM app_runs r WHERE r.thread_id = t.thread_id AND r.{_ACTIVE})"
SELECT_THREADS = f"""
    SELECT thread_id, owner, CASE WHEN {_IS_BUSY} THEN 'busy' ELSE status END AS status, metadata, config,
        ttl_strategy, ttl_minutes, created_at, updated_at
    FROM app_threads t
"""
SELECT_RUNS = f"SELECT {', '.join(_RUN_COLUMNS)} FROM app_runs t"

_ATTEMPTS: Final = 5


class MetadataStore:
    """Threads and runs in PostgreSQL; see `MetadataStoreProtocol` for what each operation promises."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    async def start_run(
        self,
        run_id: str,
        *,
        worker_id: str,
        thread_id: str | None = None,
        create_thread: bool = True,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        created_at: datetime | None = None,
    ) -> None:
        run = new_run(
            run_id,
            worker_id=worker_id,
            thread_id=thread_id,
            owner=owner,
            metadata=metadata,
            kwargs=kwargs,
            created_at=created_at,
        )
        values = {**run, "metadata": Jsonb(run["metadata"]), "kwargs": Jsonb(run["kwargs"])}
        if thread_id is None:
            await self._database.fetch(START_RUN, values)
            return
        statement = START_RUN_ON_THREAD if create_thread else START_READING_RUN
        for _ in range(_ATTEMPTS):
            if await self._database.fetch(statement, values):
                return
            if await self.get_run(run_id) is not None:
                return
            await self._refuse_other_owner(thread_id, owner)
        raise StoreError(f"The thread {thread_id!r} comes and goes: the run could not be tied to it.")

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        validate_run_id(run_id)
        thread = new_thread(thread_id, owner=owner)
        values = {"run_id": run_id, "thread_id": thread_id, "owner": owner, "created_at": thread["created_at"]}
        for _ in range(_ATTEMPTS):
            if await self._database.fetch(ATTACH_RUN, values):
                return
            await self._refuse_other_owner(thread_id, owner)
        raise StoreError(f"The thread {thread_id!r} comes and goes: the run could not be tied to it.")

    async def finish_run(self, finish: RunFinish) -> bool:
        finish = checked_finish(finish)
        values = {
            **finish,
            "metadata": Jsonb(finish["metadata"]),
            "error": None if finish["error"] is None else Jsonb(finish["error"]),
        }
        if await _repeated(lambda: self._database.fetch(FINISH_RUN, values)):
            return True
        return bool(await self._database.fetch(WAS_FINISHED_SO, values))

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        values = {"worker_id": worker_id, "now": datetime.now(UTC), "error": Jsonb(checked_error(error))}
        rows = await _repeated(lambda: self._database.fetch(INTERRUPT_RUNS, values))
        number: int = rows[0]["number"]
        return number

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        where, values = _where_one("run_id", validate_run_id(run_id), owner)
        rows = await self._database.fetch(f"{SELECT_RUNS} {where}", values)
        return _run_of(rows[0]) if rows else None

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        clauses, values = _clauses(run_query(search), id_column="run_id", id_type="uuid", busy=None)
        return [_run_of(row) for row in await self._database.fetch(f"{SELECT_RUNS} {clauses}", values)]

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        where, values = _where_one("run_id", validate_run_id(run_id), owner)
        values["metadata"] = Jsonb(validate_json_object(metadata, "metadata"))
        rows = await self._database.fetch(
            f"UPDATE app_runs SET metadata = metadata || %(metadata)s {where} RETURNING {', '.join(_RUN_COLUMNS)}",
            values,
        )
        if not rows:
            raise RunNotFoundError(f"There is no run {run_id}.")
        return _run_of(rows[0])

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    async def create_thread(
        self,
        thread_id: str,
        *,
        owner: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | None = None,
        if_exists: Literal["raise", "do_nothing"] = "raise",
    ) -> ThreadRow:
        thread = new_thread(thread_id, owner=owner, metadata=metadata, config=config, ttl=ttl)
        for _ in range(_ATTEMPTS):
            if await self._database.fetch(INSERT_THREAD, _thread_values(thread)):
                return thread
            if if_exists == "raise":
                raise ThreadExistsError(f"There is a thread {thread_id!r} already.")
            await self._refuse_other_owner(thread_id, owner)
            existing = await self.get_thread(thread_id)
            if existing is not None:
                return existing
        raise StoreError(f"The thread {thread_id!r} comes and goes: it could not be made.")

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        where, values = _where_one("thread_id", validate_thread_id(thread_id), owner)
        rows = await self._database.fetch(f"{SELECT_THREADS} {where}", values)
        return _thread_of(rows[0]) if rows else None

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        clauses, values = _clauses(thread_query(search), id_column="thread_id", id_type="text", busy=_IS_BUSY)
        return [_thread_of(row) for row in await self._database.fetch(f"{SELECT_THREADS} {clauses}", values)]

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        where, values = _where_one("thread_id", validate_thread_id(thread_id), owner)
        changes = ["updated_at = %(now)s", "metadata = metadata || %(metadata)s"]
        values |= {"now": datetime.now(UTC), "metadata": Jsonb(validate_json_object(metadata or {}, "metadata"))}
        if config is not None:
            changes.append("config = %(config)s")
            values["config"] = Jsonb(validate_json_object(config, "config"))
        if (new_ttl := checked_ttl_change(ttl)) != "keep":
            changes.append("ttl_strategy = %(ttl_strategy)s, ttl_minutes = %(ttl_minutes)s")
            values |= _ttl_values(new_ttl)
        rows = await self._database.fetch(
            f"UPDATE app_threads t SET {', '.join(changes)} {where} RETURNING thread_id, owner, "
            f"CASE WHEN {_IS_BUSY} THEN 'busy' ELSE status END AS status, metadata, config, ttl_strategy, ttl_minutes, "
            "created_at, updated_at",
            values,
        )
        if not rows:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
        return _thread_of(rows[0])

    async def delete_thread(
        self,
        thread_id: str,
        *,
        force: bool = False,
        owner: OwnerFilter = ANY_OWNER,
        ignore_run: str | None = None,
    ) -> None:
        where, values = _where_one("thread_id", validate_thread_id(thread_id), owner)
        values["ignore_run"] = None if ignore_run is None else validate_run_id(ignore_run)

        async def delete() -> None:
            async with self._database.connection() as connection, connection.transaction():
                # Runs before their thread: the order in which a finish locks them.
                await connection.execute(
                    "SELECT run_id FROM app_runs WHERE thread_id = %(id)s ORDER BY run_id FOR UPDATE", values
                )
                found = await connection.execute(f"SELECT thread_id FROM app_threads {where} FOR UPDATE", values)  # type: ignore[arg-type,unused-ignore]
                if await found.fetchone() is None:
                    raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
                busy = await connection.execute(
                    f"SELECT run_id FROM app_runs WHERE thread_id = %(id)s AND {_ACTIVE} "  # type: ignore[arg-type,unused-ignore]
                    "AND run_id IS DISTINCT FROM %(ignore_run)s::uuid LIMIT 1",
                    values,
                )
                if not force and await busy.fetchone() is not None:
                    raise ThreadBusyError(
                        f"The thread {thread_id!r} has an active run: wait for it, or use force=True."
                    )
                await connection.execute("DELETE FROM app_threads WHERE thread_id = %(id)s", values)  # runs by cascade

        await _repeated(delete)

    async def _refuse_other_owner(self, thread_id: str, owner: str | None) -> None:
        thread = await self.get_thread(thread_id)
        if thread is not None and thread["owner"] != owner:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")


async def _repeated(operation: Callable[[], Awaitable[T]]) -> T:
    """Repeat an operation that lost against a concurrent one, and that the database has undone as a whole."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return await operation()
        except StoreError as exc:
            if not isinstance(exc.__cause__, DeadlockDetected | ForeignKeyViolation):
                raise
    return await operation()


def _where_one(id_column: str, value: str, owner: OwnerFilter) -> tuple[str, dict[str, Any]]:
    where, values = f"WHERE {id_column} = %(id)s", {"id": value}
    if checked_owner(owner) is not ANY_OWNER:
        return f"{where} AND owner IS NOT DISTINCT FROM %(owner)s", {**values, "owner": owner}
    return where, values


def _clauses(query: Query, *, id_column: str, id_type: str, busy: str | None) -> tuple[str, dict[str, Any]]:
    """The WHERE, ORDER BY and LIMIT of a search; every value is a parameter."""
    conditions = ["TRUE"]
    values: dict[str, Any] = {"limit": query.limit, "offset": query.offset}
    if query.statuses is not None:
        if busy is None:
            conditions.append("t.status = ANY(%(statuses)s)")
        else:
            conditions.append(f"CASE WHEN {busy} THEN %(busy)s ELSE t.status = ANY(%(statuses)s) END")
            values["busy"] = "busy" in query.statuses
        values["statuses"] = list(query.statuses)
    if query.ids is not None:
        conditions.append(f"t.{id_column} = ANY(%(ids)s::{id_type}[])")
        values["ids"] = list(query.ids)
    if query.thread_id is not None:
        conditions.append("t.thread_id = %(thread_id)s")
        values["thread_id"] = query.thread_id
    if query.owner is not ANY_OWNER:
        conditions.append("t.owner IS NOT DISTINCT FROM %(owner)s")
        values["owner"] = query.owner
    if query.created_after is not None:
        conditions.append("t.created_at >= %(created_after)s")
        values["created_after"] = query.created_after
    if query.created_before is not None:
        conditions.append("t.created_at < %(created_before)s")
        values["created_before"] = query.created_before
    if query.metadata is not None:
        conditions.append("t.metadata @> %(metadata)s")
        values["metadata"] = Jsonb(query.metadata)
    direction = "DESC NULLS FIRST" if query.descending else "ASC NULLS LAST"
    return (
        f"WHERE {' AND '.join(conditions)} ORDER BY t.{query.sort_by} {direction}, t.{id_column} {direction} "
        "LIMIT %(limit)s OFFSET %(offset)s"
    ), values


def _run_of(row: DictRow) -> RunRow:
    return cast(
        "RunRow",
        {
            **row,
            "run_id": str(row["run_id"]),
            "created_at": row["created_at"].astimezone(UTC),
            "started_at": row["started_at"].astimezone(UTC),
            "finished_at": None if row["finished_at"] is None else row["finished_at"].astimezone(UTC),
        },
    )


def _thread_values(thread: ThreadRow) -> dict[str, Any]:
    return {
        **thread,
        "metadata": Jsonb(thread["metadata"]),
        "config": Jsonb(thread["config"]),
        **_ttl_values(thread["ttl"]),
    }


def _ttl_values(ttl: ThreadTTL | None) -> dict[str, Any]:
    return {
        "ttl_strategy": None if ttl is None else ttl["strategy"],
        "ttl_minutes": None if ttl is None else ttl["ttl"],
    }


def _thread_of(row: DictRow) -> ThreadRow:
    strategy, minutes = row.pop("ttl_strategy"), row.pop("ttl_minutes")
    return cast(
        "ThreadRow",
        {
            **row,
            "ttl": None if strategy is None else ThreadTTL(strategy=strategy, ttl=minutes),
            "created_at": row["created_at"].astimezone(UTC),
            "updated_at": row["updated_at"].astimezone(UTC),
        },
    )
