"""`SqliteMetadataStore`: threads and runs in the tables `app_threads` and `app_runs`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, Unpack, cast

from skeino.errors import RunNotFoundError, ThreadBusyError, ThreadExistsError, ThreadNotFoundError
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
from skeino.persistence.sqlite.database import SqliteDatabase
from skeino.validation import validate_json_object, validate_run_id, validate_thread_id

_RUN_COLUMNS = tuple(RunRow.__annotations__)
_ACTIVE = "status IN ('pending', 'running')"

INSERT_THREAD = """
    INSERT INTO app_threads
        (thread_id, owner, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at)
    VALUES (:thread_id, :owner, 'idle', :metadata, :config, :ttl_strategy, :ttl_minutes, :created_at, :updated_at)
    ON CONFLICT (thread_id) DO NOTHING
"""
INSERT_RUN = f"""
    INSERT INTO app_runs ({", ".join(_RUN_COLUMNS)})
    VALUES ({", ".join(f":{column}" for column in _RUN_COLUMNS)})
    ON CONFLICT (run_id) DO NOTHING
"""
ATTACH_RUN = f"""
    UPDATE app_runs SET thread_id = :thread_id WHERE run_id = :run_id AND thread_id IS NULL AND {_ACTIVE}
"""
FINISH_RUN = f"""
    UPDATE app_runs SET
        status = :status, finished_at = :finished_at, error = :error, http_status = :http_status,
        metadata = :metadata, checkpoint_count = :checkpoint_count, first_checkpoint_id = :first_checkpoint_id,
        last_checkpoint_id = :last_checkpoint_id, paused = :paused,
        thread_id = coalesce(thread_id, (
            SELECT t.thread_id FROM app_threads t
            WHERE t.thread_id = :thread_id AND t.owner IS app_runs.owner
        ))
    WHERE run_id = :run_id AND worker_id = :worker_id AND {_ACTIVE}
"""
SETTLE_THREAD = """
    UPDATE app_threads SET status = :thread_status, updated_at = max(updated_at, :finished_at)
    WHERE thread_id = (SELECT thread_id FROM app_runs WHERE run_id = :run_id)
"""
SETTLE_THREADS_OF_WORKER = f"""
    UPDATE app_threads SET status = 'interrupted', updated_at = max(updated_at, :now)
    WHERE thread_id IN (SELECT thread_id FROM app_runs WHERE worker_id = :worker_id AND {_ACTIVE})
"""
INTERRUPT_RUNS = f"""
    UPDATE app_runs SET status = 'interrupted', finished_at = :now, error = :error
    WHERE worker_id = :worker_id AND {_ACTIVE}
"""
_IS_BUSY = f"EXISTS (SELECT 1 FROM app_runs r WHERE r.thread_id = t.thread_id AND r.{_ACTIVE})"
SELECT_THREADS = f"""
    SELECT thread_id, owner, CASE WHEN {_IS_BUSY} THEN 'busy' ELSE status END AS status, metadata, config,
        ttl_strategy, ttl_minutes, created_at, updated_at
    FROM app_threads t
"""
SELECT_RUNS = f"SELECT {', '.join(_RUN_COLUMNS)} FROM app_runs t"
_HAS_METADATA = """
    EXISTS (SELECT 1 FROM json_each(t.metadata) j WHERE j.key = :{name}_key AND {test})
"""


class SqliteMetadataStore:
    """Threads and runs in a SQLite file; see `MetadataStoreProtocol` for what each operation promises."""

    def __init__(self, database: SqliteDatabase) -> None:
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
        if not create_thread:
            run["thread_id"] = None
        run_values = _run_values(run)
        thread = None if thread_id is None else new_thread(thread_id, owner=owner, created_at=run["created_at"])

        def start(connection: sqlite3.Connection) -> None:
            if thread is not None:
                _refuse_other_owner(connection, thread["thread_id"], owner)
                if create_thread:
                    connection.execute(INSERT_THREAD, _thread_values(thread))
            connection.execute(INSERT_RUN, run_values)

        await self._database.write(start)

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        validate_run_id(run_id)
        values = _thread_values(new_thread(thread_id, owner=owner))

        def attach(connection: sqlite3.Connection) -> None:
            _refuse_other_owner(connection, thread_id, owner)
            connection.execute(INSERT_THREAD, values)
            connection.execute(ATTACH_RUN, {"run_id": run_id, "thread_id": thread_id})

        await self._database.write(attach)

    async def finish_run(self, finish: RunFinish) -> bool:
        finish = checked_finish(finish)
        values = {
            **finish,
            "finished_at": _text_of(finish["finished_at"]),
            "error": None if finish["error"] is None else json.dumps(finish["error"]),
        }

        def end(connection: sqlite3.Connection) -> bool:
            found = connection.execute(
                "SELECT metadata, worker_id, status, finished_at FROM app_runs WHERE run_id = ?", (finish["run_id"],)
            ).fetchone()
            if found is None:
                return False
            metadata, *ended = tuple(found)
            values["metadata"] = json.dumps(json.loads(metadata) | finish["metadata"])
            if connection.execute(FINISH_RUN, values).rowcount == 0:
                return list(ended) == [finish["worker_id"], finish["status"], values["finished_at"]]
            if finish["thread_status"] is not None:
                connection.execute(SETTLE_THREAD, values)
            return True

        return await self._database.write(end)

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        values = {"worker_id": worker_id, "now": _text_of(datetime.now(UTC)), "error": json.dumps(checked_error(error))}

        def interrupt(connection: sqlite3.Connection) -> int:
            connection.execute(SETTLE_THREADS_OF_WORKER, values)
            return connection.execute(INTERRUPT_RUNS, values).rowcount

        return await self._database.write(interrupt)

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        where, values = _where_one("run_id", validate_run_id(run_id), owner)
        rows = await self._database.read(f"{SELECT_RUNS} {where}", values)
        return _run_of(rows[0]) if rows else None

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        clauses, values = _clauses(run_query(search), id_column="run_id", busy=None)
        return [_run_of(row) for row in await self._database.read(f"{SELECT_RUNS} {clauses}", values)]

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        changes = validate_json_object(metadata, "metadata")
        where, values = _where_one("run_id", validate_run_id(run_id), owner)

        def update(connection: sqlite3.Connection) -> RunRow:
            found = connection.execute(f"{SELECT_RUNS} {where}", values).fetchone()
            if found is None:
                raise RunNotFoundError(f"There is no run {run_id}.")
            row = _run_of(found)
            row["metadata"] |= changes
            connection.execute("UPDATE app_runs SET metadata = ? WHERE run_id = ?", (_json(row["metadata"]), run_id))
            return row

        return await self._database.write(update)

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
        values = _thread_values(new_thread(thread_id, owner=owner, metadata=metadata, config=config, ttl=ttl))

        def create(connection: sqlite3.Connection) -> ThreadRow:
            if connection.execute(INSERT_THREAD, values).rowcount == 0:
                if if_exists == "raise":
                    raise ThreadExistsError(f"There is a thread {thread_id!r} already.")
                _refuse_other_owner(connection, thread_id, owner)
            return _thread_of(connection.execute(f"{SELECT_THREADS} WHERE thread_id = ?", (thread_id,)).fetchone())

        return await self._database.write(create)

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        where, values = _where_one("thread_id", validate_thread_id(thread_id), owner)
        rows = await self._database.read(f"{SELECT_THREADS} {where}", values)
        return _thread_of(rows[0]) if rows else None

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        clauses, values = _clauses(thread_query(search), id_column="thread_id", busy=_IS_BUSY)
        return [_thread_of(row) for row in await self._database.read(f"{SELECT_THREADS} {clauses}", values)]

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        merged = validate_json_object(metadata or {}, "metadata")
        replaced = None if config is None else validate_json_object(config, "config")
        new_ttl = checked_ttl_change(ttl)
        where, values = _where_one("thread_id", validate_thread_id(thread_id), owner)

        def update(connection: sqlite3.Connection) -> ThreadRow:
            found = connection.execute(f"{SELECT_THREADS} {where}", values).fetchone()
            if found is None:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            row = _thread_of(found)
            row["metadata"] |= merged
            if replaced is not None:
                row["config"] = replaced
            if new_ttl != "keep":
                row["ttl"] = new_ttl
            row["updated_at"] = datetime.now(UTC)
            connection.execute(
                """
                UPDATE app_threads SET metadata = :metadata, config = :config, ttl_strategy = :ttl_strategy,
                    ttl_minutes = :ttl_minutes, updated_at = :updated_at
                WHERE thread_id = :thread_id
                """,
                _thread_values(row),
            )
            return row

        return await self._database.write(update)

    async def delete_thread(
        self,
        thread_id: str,
        *,
        force: bool = False,
        owner: OwnerFilter = ANY_OWNER,
        ignore_run: str | None = None,
    ) -> None:
        where, values = _where_one("thread_id", validate_thread_id(thread_id), owner)

        def delete(connection: sqlite3.Connection) -> None:
            if connection.execute(f"SELECT 1 FROM app_threads {where}", values).fetchone() is None:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            busy = connection.execute(
                f"SELECT 1 FROM app_runs WHERE thread_id = ? AND {_ACTIVE} AND run_id IS NOT ?", (thread_id, ignore_run)
            ).fetchone()
            if busy and not force:
                raise ThreadBusyError(f"The thread {thread_id!r} has an active run: wait for it, or use force=True.")
            connection.execute("DELETE FROM app_threads WHERE thread_id = ?", (thread_id,))  # runs by cascade

        await self._database.write(delete)


def _refuse_other_owner(connection: sqlite3.Connection, thread_id: str, owner: str | None) -> None:
    found = connection.execute("SELECT owner FROM app_threads WHERE thread_id = ?", (thread_id,)).fetchone()
    if found is not None and found[0] != owner:
        raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")


def _where_one(id_column: str, value: str, owner: OwnerFilter) -> tuple[str, dict[str, Any]]:
    where, values = f"WHERE {id_column} = :id", {"id": value}
    if checked_owner(owner) is not ANY_OWNER:
        return f"{where} AND owner IS :owner", {**values, "owner": owner}
    return where, values


def _clauses(query: Query, *, id_column: str, busy: str | None) -> tuple[str, dict[str, Any]]:
    """The WHERE, ORDER BY and LIMIT of a search; every value is a parameter."""
    conditions = ["TRUE"]
    values: dict[str, Any] = {"limit": query.limit, "offset": query.offset}

    def any_of(column: str, wanted: tuple[str, ...], name: str) -> str:
        values[name] = json.dumps(wanted)
        return f"{column} IN (SELECT value FROM json_each(:{name}))"

    if query.statuses is not None:
        if busy is None:
            conditions.append(any_of("t.status", query.statuses, "statuses"))
        else:
            settled = any_of("t.status", tuple(one for one in query.statuses if one != "busy"), "statuses")
            conditions.append(f"({busy} AND :busy OR NOT {busy} AND {settled})")
            values["busy"] = "busy" in query.statuses
    if query.ids is not None:
        conditions.append(any_of(f"t.{id_column}", query.ids, "ids"))
    if query.thread_id is not None:
        conditions.append("t.thread_id = :thread_id")
        values["thread_id"] = query.thread_id
    if query.owner is not ANY_OWNER:
        conditions.append("t.owner IS :owner")
        values["owner"] = query.owner
    if query.created_after is not None:
        conditions.append("t.created_at >= :created_after")
        values["created_after"] = _text_of(query.created_after)
    if query.created_before is not None:
        conditions.append("t.created_at < :created_before")
        values["created_before"] = _text_of(query.created_before)
    for number, (key, wanted) in enumerate((query.metadata or {}).items()):
        name = f"metadata_{number}"
        conditions.append(_HAS_METADATA.format(name=name, test=_json_test(wanted, f":{name}_value")))
        values |= {f"{name}_key": key, f"{name}_value": wanted}
    direction = "DESC NULLS FIRST" if query.descending else "ASC NULLS LAST"
    return (
        f"WHERE {' AND '.join(conditions)} ORDER BY t.{query.sort_by} {direction}, t.{id_column} {direction} "
        "LIMIT :limit OFFSET :offset"
    ), values


def _json_test(wanted: object, parameter: str) -> str:
    """How json_each's columns show a scalar (https://www.sqlite.org/json1.html#jeach)."""
    if wanted is None:
        return "j.type = 'null'"
    if isinstance(wanted, bool):
        return f"j.type = '{'true' if wanted else 'false'}'"
    if isinstance(wanted, str):
        return f"j.type = 'text' AND j.atom = {parameter}"
    return f"j.type IN ('integer', 'real') AND j.atom = {parameter}"


def _run_values(run: RunRow) -> dict[str, Any]:
    return {
        **run,
        "metadata": _json(run["metadata"]),
        "kwargs": _json(run["kwargs"]),
        "error": None if run["error"] is None else json.dumps(run["error"]),
        "created_at": _text_of(run["created_at"]),
        "started_at": _text_of(run["started_at"]),
        "finished_at": None if run["finished_at"] is None else _text_of(run["finished_at"]),
    }


def _run_of(row: Any) -> RunRow:
    values = dict(zip(_RUN_COLUMNS, row, strict=True))
    return cast(
        "RunRow",
        {
            **values,
            "metadata": json.loads(values["metadata"]),
            "kwargs": json.loads(values["kwargs"]),
            "error": None if values["error"] is None else json.loads(values["error"]),
            "created_at": datetime.fromisoformat(values["created_at"]),
            "started_at": datetime.fromisoformat(values["started_at"]),
            "finished_at": None if values["finished_at"] is None else datetime.fromisoformat(values["finished_at"]),
            "paused": bool(values["paused"]),
        },
    )


def _thread_values(thread: ThreadRow) -> dict[str, Any]:
    ttl = thread["ttl"]
    return {
        "thread_id": thread["thread_id"],
        "owner": thread["owner"],
        "metadata": _json(thread["metadata"]),
        "config": _json(thread["config"]),
        "ttl_strategy": None if ttl is None else ttl["strategy"],
        "ttl_minutes": None if ttl is None else ttl["ttl"],
        "created_at": _text_of(thread["created_at"]),
        "updated_at": _text_of(thread["updated_at"]),
    }


def _thread_of(row: Any) -> ThreadRow:
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


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _text_of(moment: datetime) -> str:
    """Of one width, so that text sorts as time does."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")
