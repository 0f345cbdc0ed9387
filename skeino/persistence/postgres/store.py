"""`MetadataStore`: threads and runs in the tables `app_threads` and `app_runs` of a PostgreSQL database.

A run's start and its end are one statement each, so one round trip and one commit. A thread's `busy` is not
stored: it is derived from the active runs, so nothing has to be put right when a process dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, TypeVar, Unpack

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from skeino.errors import (
    RunNotFoundError,
    StoreError,
    ThreadBusyError,
    ThreadExistsError,
    ThreadNotFoundError,
)
from skeino.persistence.answers import made_of
from skeino.persistence.claims import Queue
from skeino.persistence.postgres.batches import (
    ATTACH,
    CLAIM,
    FINISH,
    INTERRUPT,
    RELEASE,
    START,
    START_ON_THREAD,
    START_READING,
)
from skeino.persistence.postgres.connections import PostgresDatabase
from skeino.persistence.postgres.leases import PostgresLeases
from skeino.persistence.postgres.statements import (
    ACTIVE,
    CHANGE_QUEUE,
    INSERT_THREAD,
    IS_BUSY,
    KEEP_LATE_OUTCOME,
    LOCK_THREADS,
    RUN_FIELDS,
    SELECT_QUEUE,
    SELECT_RUNS,
    SELECT_THREADS,
    START_RUN,
    THREAD_FIELDS,
    run_of,
    run_values,
    search_clauses,
    thread_of,
    thread_values,
    ttl_values,
    where_one,
)
from skeino.persistence.postgres.sweeps import PostgresSweeps
from skeino.persistence.postgres.writer import repeated_if_undone
from skeino.persistence.protocol import NewThread, RunSearch, RunStart, ThreadSearch
from skeino.persistence.queries import (
    checked_error,
    checked_finish,
    checked_if_exists,
    checked_ttl_change,
    late_outcome_of,
    new_run,
    new_thread,
    run_query,
    thread_query,
)
from skeino.persistence.restoring import owners_of_threads, restored_runs, restored_threads
from skeino.persistence.rows import ANY_OWNER, OwnerFilter, RunError, RunFinish, RunRow, ThreadRow, ThreadTTL
from skeino.validation import (
    validate_id,
    validate_json_object,
    validate_optional_json_object,
    validate_run_id,
    validate_thread_id,
)

T = TypeVar("T")
RowT = TypeVar("RowT", ThreadRow, RunRow)

_ATTEMPTS: Final = 20


class MetadataStore:
    """Threads and runs in PostgreSQL; see `MetadataStoreProtocol` for what each operation promises."""

    def __init__(self, database: PostgresDatabase, thread_ttl: ThreadTTL | None = None) -> None:
        self._database = database
        self._thread_ttl = thread_ttl
        self._write = database.writer.write
        self._looking: set[asyncio.Task[bool]] = set()  # the event loop does not keep them

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    async def start_run(self, run_id: str, *, worker_id: str, **start: Unpack[RunStart]) -> None:
        run = new_run(run_id, worker_id, start)
        thread_id, owner, create_thread = run["thread_id"], run["owner"], start.get("create_thread", True)
        values = run_values(run) | ttl_values(self._thread_ttl)
        if thread_id is None:
            await self._write(START, values, run_id)
            return
        kind = START_ON_THREAD if create_thread else START_READING
        for _ in range(_ATTEMPTS):
            if await self._write(kind, values, run_id, thread=thread_id):
                return
            await self._refuse_other_owner(thread_id, owner)
            if await self.get_run(run_id) is not None:
                return
        raise StoreError(f"The thread {thread_id!r} comes and goes: the run could not be tied to it.")

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        validate_run_id(run_id)
        thread = new_thread(thread_id, {"owner": owner})
        values = {"run_id": run_id, "thread_id": thread_id, "owner": owner, "created_at": thread["created_at"]}
        values |= ttl_values(self._thread_ttl)
        for _ in range(_ATTEMPTS):
            if await self._write(ATTACH, values, run_id, thread=thread_id):
                return
            await self._refuse_other_owner(thread_id, owner)
        raise StoreError(f"The thread {thread_id!r} comes and goes: the run could not be tied to it.")

    # ── Who writes to a thread ───────────────────────────────────────────────────────────────────────────

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        validate_run_id(run_id)
        thread = new_thread(thread_id, {"owner": owner})
        values = {"run_id": run_id, "thread_id": thread_id, "owner": owner, "created_at": thread["created_at"]}
        values |= ttl_values(self._thread_ttl)
        for _ in range(_ATTEMPTS):
            if rows := await self._write(CLAIM, values, run_id, thread=thread_id):
                fence: int | None = rows[0]["fence"]
                return fence
            await self._refuse_other_owner(thread_id, owner)
        raise StoreError(f"The thread {thread_id!r} comes and goes: the run could not be tied to it.")

    async def get_queue(self, thread_id: str) -> Queue | None:
        rows = await self._database.fetch(SELECT_QUEUE, {"thread_id": validate_thread_id(thread_id)})
        return Queue(tuple(rows[0]["queue"]), frozenset(rows[0]["active"])) if rows else None

    async def change_queue(
        self, thread_id: str, seen: Sequence[str], wanted: Sequence[str], *, takes: bool
    ) -> int | None:
        values = {
            "thread_id": validate_thread_id(thread_id),
            "seen": [validate_run_id(run_id) for run_id in seen],
            "wanted": [validate_run_id(run_id) for run_id in wanted],
            "taken": int(takes),
        }
        rows = await self._database.fetch(CHANGE_QUEUE, values)
        fence: int | None = rows[0]["fence"] if rows else None
        return fence

    def release_thread(self, run_id: str, thread_id: str) -> Awaitable[None]:
        values = {"run_id": validate_run_id(run_id), "thread_id": validate_thread_id(thread_id)}
        return made_of(self._database.writer.enqueue(RELEASE, values, run_id, thread=thread_id), lambda _: None)

    # ── A run's end ──────────────────────────────────────────────────────────────────────────────────────

    def finish_run(self, finish: RunFinish) -> Awaitable[bool]:
        finish = checked_finish(finish)
        values = {
            **finish,
            "metadata": Jsonb(finish["metadata"]),
            "error": None if finish["error"] is None else Jsonb(finish["error"]),
        }

        def ended(rows: list[DictRow]) -> bool | asyncio.Task[bool]:
            if rows:
                return True
            task = asyncio.create_task(self._keep_aside(finish, values), name="skeino end of run")
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)
            return task

        written = self._database.writer.enqueue(FINISH, values, finish["run_id"], thread=finish["thread_id"])
        return made_of(written, ended)

    async def _keep_aside(self, finish: RunFinish, values: dict[str, Any]) -> bool:
        """Keep an end that changed nothing, unless it had ended the run itself, before: whether it had."""
        values["late_outcome"] = Jsonb(late_outcome_of(finish))
        return bool(await self._database.fetch(KEEP_LATE_OUTCOME, values, repeatable=True))

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        validate_id(worker_id, "worker_id")
        values = {"worker_id": worker_id, "now": datetime.now(UTC), "error": Jsonb(checked_error(error))}
        rows = await self._write(INTERRUPT, values, worker_id)
        number: int = rows[0]["number"]
        return number

    def open_leases(self, limit: float) -> PostgresLeases:
        return PostgresLeases(self._database.parameters, self._database.place, limit)

    def sweeps(self) -> PostgresSweeps:
        return PostgresSweeps(self._database)

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        where, values = where_one("run_id", validate_run_id(run_id), owner)
        rows = await self._database.fetch(f"{SELECT_RUNS} {where}", values, repeatable=True)
        return run_of(rows[0]) if rows else None

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        clauses, values = search_clauses(run_query(search), id_column="run_id", id_type="uuid", busy=None)
        rows = await self._database.fetch(f"{SELECT_RUNS} {clauses}", values, repeatable=True)
        return [run_of(row) for row in rows]

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        where, values = where_one("run_id", validate_run_id(run_id), owner)
        values["metadata"] = Jsonb(validate_json_object(metadata, "metadata"))
        rows = await self._database.fetch(
            f"UPDATE app_runs SET metadata = metadata || %(metadata)s {where} RETURNING {RUN_FIELDS}",
            values,
            repeatable=True,
        )
        if not rows:
            raise RunNotFoundError(f"There is no run {run_id}.")
        return run_of(rows[0])

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    async def create_thread(
        self, thread_id: str, *, if_exists: Literal["raise", "do_nothing"] = "raise", **thread: Unpack[NewThread]
    ) -> ThreadRow:
        checked_if_exists(if_exists)
        row = new_thread(thread_id, thread, default_ttl=self._thread_ttl)
        for _ in range(_ATTEMPTS):
            if await self._database.fetch(INSERT_THREAD, thread_values(row)):
                return row
            if if_exists == "raise":
                raise ThreadExistsError(f"There is a thread {thread_id!r} already.")
            await self._refuse_other_owner(thread_id, row["owner"])
            existing = await self.get_thread(thread_id)
            if existing is not None:
                return existing
        raise StoreError(f"The thread {thread_id!r} comes and goes: it could not be made.")

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        where, values = where_one("thread_id", validate_thread_id(thread_id), owner)
        rows = await self._database.fetch(f"{SELECT_THREADS} {where}", values, repeatable=True)
        return thread_of(rows[0]) if rows else None

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        clauses, values = search_clauses(thread_query(search), id_column="thread_id", id_type="text", busy=IS_BUSY)
        rows = await self._database.fetch(f"{SELECT_THREADS} {clauses}", values, repeatable=True)
        return [thread_of(row) for row in rows]

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        where, values = where_one("thread_id", validate_thread_id(thread_id), owner)
        changes = ["updated_at = %(now)s", "metadata = metadata || %(metadata)s"]
        values |= {"now": datetime.now(UTC), "metadata": Jsonb(validate_optional_json_object(metadata, "metadata"))}
        if config is not None:
            changes.append("config = %(config)s")
            values["config"] = Jsonb(validate_json_object(config, "config"))
        if (new_ttl := checked_ttl_change(ttl)) != "keep":
            changes.append("ttl_strategy = %(ttl_strategy)s, ttl_minutes = %(ttl_minutes)s")
            values |= ttl_values(new_ttl)
        rows = await self._database.fetch(
            f"UPDATE app_threads t SET {', '.join(changes)} {where} RETURNING {THREAD_FIELDS}",
            values,
            repeatable=True,
        )
        if not rows:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
        return thread_of(rows[0])

    async def delete_thread(
        self,
        thread_id: str,
        *,
        force: bool = False,
        owner: OwnerFilter = ANY_OWNER,
        ignore_run: str | None = None,
    ) -> None:
        where, values = where_one("thread_id", validate_thread_id(thread_id), owner)
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
                    f"SELECT run_id FROM app_runs WHERE thread_id = %(id)s AND {ACTIVE} "  # type: ignore[arg-type,unused-ignore]
                    "AND run_id IS DISTINCT FROM %(ignore_run)s::uuid LIMIT 1",
                    values,
                )
                if not force and await busy.fetchone() is not None:
                    raise ThreadBusyError(
                        f"The thread {thread_id!r} has an active run: wait for it, or use force=True."
                    )
                await connection.execute(
                    "UPDATE app_runs SET thread_id = NULL WHERE run_id = %(ignore_run)s AND thread_id = %(id)s", values
                )
                await connection.execute("DELETE FROM app_threads WHERE thread_id = %(id)s", values)  # runs by cascade

        await self._database.writer.settled(thread_id)
        await repeated_if_undone(delete)

    # ── Rows put back as they were ───────────────────────────────────────────────────────────────────────

    async def restore_threads(self, rows: Sequence[ThreadRow]) -> int:
        values = [thread_values(row) for row in _in_order(restored_threads(rows), "thread_id")]

        async def restore() -> int:
            async with self._database.connection() as connection, connection.transaction():
                cursor = connection.cursor()
                await cursor.executemany(INSERT_THREAD, values)
                return cursor.rowcount

        return await repeated_if_undone(restore) if values else 0

    async def restore_runs(self, rows: Sequence[RunRow]) -> int:
        runs = restored_runs(rows)
        needed = owners_of_threads(runs)
        values = [run_values(run) for run in _in_order(runs, "run_id")]

        async def restore() -> int:
            async with self._database.connection() as connection, connection.transaction():
                found = await connection.execute(LOCK_THREADS, ([thread_id for thread_id, _ in needed],))
                present = {(row["thread_id"], row["owner"]) for row in await found.fetchall()}
                for thread_id, _ in needed - present:
                    raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
                cursor = connection.cursor()
                await cursor.executemany(START_RUN, values)  # type: ignore[arg-type,unused-ignore]
                return cursor.rowcount

        return await repeated_if_undone(restore) if values else 0

    async def _refuse_other_owner(self, thread_id: str, owner: str | None) -> None:
        thread = await self.get_thread(thread_id)
        if thread is not None and thread["owner"] != owner:
            raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")


def _in_order(rows: Sequence[RowT], column: str) -> list[RowT]:
    """Two transactions that write the same rows in the same order do not wait for each other in a circle."""
    return sorted(rows, key=lambda row: str(row[column]))  # type: ignore[literal-required]
