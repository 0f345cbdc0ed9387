"""`SqliteMetadataStore`: threads and runs in the tables `app_threads` and `app_runs`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, Unpack

from skeino.errors import RunNotFoundError, ThreadBusyError, ThreadExistsError, ThreadNotFoundError
from skeino.persistence.claims import Queue
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
from skeino.persistence.sqlite.database import SqliteDatabase
from skeino.persistence.sqlite.leases import SqliteLeases
from skeino.persistence.sqlite.statements import (
    ACTIVE,
    ATTACH_RUN,
    CHANGE_QUEUE,
    FINISH_RUN,
    FINISH_RUN_WITH_METADATA,
    INSERT_RUN,
    INSERT_THREAD,
    INTERRUPT_RUNS,
    IS_BUSY,
    KEEP_LATE_OUTCOME,
    RELEASE_THREAD,
    SELECT_RUNS,
    SELECT_THREADS,
    SETTLE_THREAD,
    SETTLE_THREADS_OF_WORKER,
    START_RUN,
    ids_text,
    json_text,
    queue_of,
    run_of,
    run_values,
    search_clauses,
    text_of,
    thread_of,
    thread_values,
    where_one,
    with_few_ids,
)
from skeino.persistence.sqlite.sweeps import SqliteSweeps
from skeino.validation import (
    validate_id,
    validate_json_object,
    validate_optional_json_object,
    validate_run_id,
    validate_thread_id,
)


class SqliteMetadataStore:
    """Threads and runs in a SQLite file; see `MetadataStoreProtocol` for what each operation promises."""

    def __init__(self, database: SqliteDatabase, thread_ttl: ThreadTTL | None = None) -> None:
        self._database = database
        self._thread_ttl = thread_ttl

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    async def start_run(self, run_id: str, *, worker_id: str, **start: Unpack[RunStart]) -> None:
        run = new_run(run_id, worker_id, start)
        thread_id, owner, create_thread = run["thread_id"], run["owner"], start.get("create_thread", True)
        if not create_thread:
            run["thread_id"] = None
        values = run_values(run)
        thread = None
        if thread_id is not None and create_thread:
            row = new_thread(thread_id, {"owner": owner}, run["created_at"], default_ttl=self._thread_ttl)
            thread = thread_values(row)

        def insert(connection: sqlite3.Connection) -> None:
            made = thread is not None and _made(connection, thread)
            if thread_id is not None and not made:  # most threads are new: then there is nothing to look up
                _refuse_other_owner(connection, thread_id, owner)
            if START_RUN.run(connection, values) == 0 and made:
                # The run had begun before, and its thread was deleted since.
                connection.execute("DELETE FROM app_threads WHERE thread_id = ?", (thread_id,))

        await self._database.write(insert)

    async def attach_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> None:
        validate_run_id(run_id)
        values = thread_values(new_thread(thread_id, {"owner": owner}, default_ttl=self._thread_ttl))

        def attach(connection: sqlite3.Connection) -> None:
            if not _made(connection, values):
                _refuse_other_owner(connection, thread_id, owner)
            ATTACH_RUN.run(connection, {"run_id": run_id, "thread_id": thread_id})

        await self._database.write(attach)

    # ── Who writes to a thread ───────────────────────────────────────────────────────────────────────────

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        validate_run_id(run_id)
        values = thread_values(new_thread(thread_id, {"owner": owner}, default_ttl=self._thread_ttl))
        claim = {"thread_id": thread_id, "seen": "[]", "wanted": ids_text([run_id]), "taken": 1}

        def take(connection: sqlite3.Connection) -> int | None:
            if not _made(connection, values):
                _refuse_other_owner(connection, thread_id, owner)
            ATTACH_RUN.run(connection, {"run_id": run_id, "thread_id": thread_id})
            return _change_queue(connection, claim)

        return await self._database.write(take)

    async def get_queue(self, thread_id: str) -> Queue | None:
        validate_thread_id(thread_id)

        def read(connection: sqlite3.Connection) -> Queue | None:
            found = connection.execute("SELECT queue FROM app_threads WHERE thread_id = ?", (thread_id,)).fetchone()
            return None if found is None else queue_of(connection, found[0])

        return await self._database.reading(read)

    async def change_queue(
        self, thread_id: str, seen: Sequence[str], wanted: Sequence[str], *, takes: bool
    ) -> int | None:
        values = {
            "thread_id": validate_thread_id(thread_id),
            "seen": ids_text([validate_run_id(run_id) for run_id in seen]),
            "wanted": ids_text([validate_run_id(run_id) for run_id in wanted]),
            "taken": int(takes),
        }
        return await self._database.write(lambda connection: _change_queue(connection, values))

    def release_thread(self, run_id: str, thread_id: str) -> Awaitable[None]:
        values = {"run_id": validate_run_id(run_id), "thread_id": validate_thread_id(thread_id)}

        def release(connection: sqlite3.Connection) -> None:
            RELEASE_THREAD.run(connection, values)

        return self._database.enqueue(release)

    # ── A run's end ──────────────────────────────────────────────────────────────────────────────────────

    def finish_run(self, finish: RunFinish) -> Awaitable[bool]:
        finish = checked_finish(finish)
        finished_at = text_of(finish["finished_at"])
        values = {
            **finish,
            "finished_at": finished_at,
            "error": None if finish["error"] is None else json.dumps(finish["error"]),
        }

        def end(connection: sqlite3.Connection) -> bool:
            if finish["metadata"]:
                metadata = connection.execute("SELECT metadata FROM app_runs WHERE run_id = :run_id", values).fetchone()
                values["metadata"] = json_text((json.loads(metadata[0]) if metadata else {}) | finish["metadata"])
                statements = FINISH_RUN_WITH_METADATA
            else:
                statements = FINISH_RUN
            if not any(statement.run(connection, values) for statement in statements):
                return _keep_if_late(connection, finish, finished_at)
            if finish["thread_status"] is not None:
                SETTLE_THREAD.run(connection, values)
            return True

        return self._database.enqueue(end)

    async def interrupt_runs(self, worker_id: str, error: RunError) -> int:
        validate_id(worker_id, "worker_id")
        values = {"worker_id": worker_id, "now": text_of(datetime.now(UTC)), "error": json.dumps(checked_error(error))}

        def interrupt(connection: sqlite3.Connection) -> int:
            connection.execute(SETTLE_THREADS_OF_WORKER, values)
            return connection.execute(INTERRUPT_RUNS, values).rowcount

        return await self._database.write(interrupt)

    def open_leases(self, limit: float) -> SqliteLeases:
        return SqliteLeases(self._database.path, limit)

    def sweeps(self) -> SqliteSweeps:
        return SqliteSweeps(self._database)

    # ── Runs ─────────────────────────────────────────────────────────────────────────────────────────────

    async def get_run(self, run_id: str, *, owner: OwnerFilter = ANY_OWNER) -> RunRow | None:
        where, values = where_one("run_id", validate_run_id(run_id), owner)
        rows = await self._database.read(f"{SELECT_RUNS} {where}", values)
        return run_of(rows[0]) if rows else None

    async def search_runs(self, **search: Unpack[RunSearch]) -> list[RunRow]:
        query = run_query(search)

        def read(connection: sqlite3.Connection) -> list[RunRow]:
            rarer = with_few_ids(connection, query, table="app_runs", id_column="run_id")
            clauses, values = search_clauses(rarer, id_column="run_id", busy=None)
            return [run_of(row) for row in connection.execute(f"{SELECT_RUNS} {clauses}", values)]

        return await self._database.reading(read)

    async def update_run(self, run_id: str, *, metadata: Mapping[str, Any], owner: OwnerFilter = ANY_OWNER) -> RunRow:
        changes = validate_json_object(metadata, "metadata")
        where, values = where_one("run_id", validate_run_id(run_id), owner)

        def update(connection: sqlite3.Connection) -> RunRow:
            found = connection.execute(f"{SELECT_RUNS} {where}", values).fetchone()
            if found is None:
                raise RunNotFoundError(f"There is no run {run_id}.")
            row = run_of(found)
            row["metadata"] |= changes
            connection.execute(
                "UPDATE app_runs SET metadata = ? WHERE run_id = ?", (json_text(row["metadata"]), run_id)
            )
            return row

        return await self._database.write(update)

    # ── Threads ──────────────────────────────────────────────────────────────────────────────────────────

    async def create_thread(
        self, thread_id: str, *, if_exists: Literal["raise", "do_nothing"] = "raise", **thread: Unpack[NewThread]
    ) -> ThreadRow:
        checked_if_exists(if_exists)
        row = new_thread(thread_id, thread, default_ttl=self._thread_ttl)
        values = thread_values(row)

        def create(connection: sqlite3.Connection) -> ThreadRow:
            if INSERT_THREAD.run(connection, values) == 0:
                if if_exists == "raise":
                    raise ThreadExistsError(f"There is a thread {thread_id!r} already.")
                _refuse_other_owner(connection, thread_id, row["owner"])
            return thread_of(connection.execute(f"{SELECT_THREADS} WHERE thread_id = ?", (thread_id,)).fetchone())

        return await self._database.write(create)

    async def get_thread(self, thread_id: str, *, owner: OwnerFilter = ANY_OWNER) -> ThreadRow | None:
        where, values = where_one("thread_id", validate_thread_id(thread_id), owner)
        rows = await self._database.read(f"{SELECT_THREADS} {where}", values)
        return thread_of(rows[0]) if rows else None

    async def search_threads(self, **search: Unpack[ThreadSearch]) -> list[ThreadRow]:
        query = thread_query(search)

        def read(connection: sqlite3.Connection) -> list[ThreadRow]:
            rarer = with_few_ids(connection, query, table="app_threads", id_column="thread_id")
            clauses, values = search_clauses(rarer, id_column="thread_id", busy=IS_BUSY)
            return [thread_of(row) for row in connection.execute(f"{SELECT_THREADS} {clauses}", values)]

        return await self._database.reading(read)

    async def update_thread(
        self,
        thread_id: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        ttl: ThreadTTL | Literal["keep"] | None = "keep",
        owner: OwnerFilter = ANY_OWNER,
    ) -> ThreadRow:
        merged = validate_optional_json_object(metadata, "metadata")
        replaced = None if config is None else validate_json_object(config, "config")
        new_ttl = checked_ttl_change(ttl)
        where, values = where_one("thread_id", validate_thread_id(thread_id), owner)

        def update(connection: sqlite3.Connection) -> ThreadRow:
            found = connection.execute(f"{SELECT_THREADS} {where}", values).fetchone()
            if found is None:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            row = thread_of(found)
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
                thread_values(row),
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
        where, values = where_one("thread_id", validate_thread_id(thread_id), owner)
        ignored = None if ignore_run is None else validate_run_id(ignore_run)

        def delete(connection: sqlite3.Connection) -> None:
            if connection.execute(f"SELECT 1 FROM app_threads {where}", values).fetchone() is None:
                raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            busy = connection.execute(
                f"SELECT 1 FROM app_runs WHERE thread_id = ? AND {ACTIVE} AND run_id IS NOT ?", (thread_id, ignored)
            ).fetchone()
            if busy and not force:
                raise ThreadBusyError(f"The thread {thread_id!r} has an active run: wait for it, or use force=True.")
            connection.execute(
                "UPDATE app_runs SET thread_id = NULL WHERE run_id = ? AND thread_id = ?", (ignored, thread_id)
            )
            connection.execute("DELETE FROM app_threads WHERE thread_id = ?", (thread_id,))  # runs by cascade

        await self._database.write(delete)

    # ── Rows put back as they were ───────────────────────────────────────────────────────────────────────

    async def restore_threads(self, rows: Sequence[ThreadRow]) -> int:
        values = [thread_values(row) for row in restored_threads(rows)]
        return await self._database.write(lambda connection: sum(INSERT_THREAD.run(connection, one) for one in values))

    async def restore_runs(self, rows: Sequence[RunRow]) -> int:
        runs = restored_runs(rows)
        values = [run_values(run) for run in runs]

        def restore(connection: sqlite3.Connection) -> int:
            for thread_id, owner in owners_of_threads(runs):
                where, parameters = where_one("thread_id", thread_id, owner)
                if connection.execute(f"SELECT 1 FROM app_threads {where}", parameters).fetchone() is None:
                    raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")
            return sum(INSERT_RUN.run(connection, one) for one in values)

        return await self._database.write(restore)


def _made(connection: sqlite3.Connection, thread: dict[str, Any]) -> bool:
    """Whether there was no such thread, and now there is."""
    return INSERT_THREAD.run(connection, thread) == 1


def _keep_if_late(connection: sqlite3.Connection, finish: RunFinish, finished_at: str) -> bool:
    """Keep an end that changed nothing aside, if it is one of the run's worker; True if it is the one that is there.

    Args:
        connection: in a transaction.
        finish: the end.
        finished_at: its time, as the row has it.
    """
    ended = connection.execute(
        "SELECT worker_id, status, finished_at FROM app_runs WHERE run_id = ?", (finish["run_id"],)
    ).fetchone()
    if ended is None or ended[0] != finish["worker_id"]:
        return False
    if tuple(ended[1:]) == (finish["status"], finished_at):
        return True
    late = {"run_id": finish["run_id"], "late_outcome": json_text(late_outcome_of(finish))}
    connection.execute(KEEP_LATE_OUTCOME, late)
    return False


def _refuse_other_owner(connection: sqlite3.Connection, thread_id: str, owner: str | None) -> None:
    found = connection.execute("SELECT owner FROM app_threads WHERE thread_id = ?", (thread_id,)).fetchone()
    if found is not None and found[0] != owner:
        raise ThreadNotFoundError(f"There is no thread {thread_id!r}.")


def _change_queue(connection: sqlite3.Connection, values: dict[str, Any]) -> int | None:
    """The thread's fence, if its queue was as seen."""
    if CHANGE_QUEUE.run(connection, values) == 0:
        return None
    found = connection.execute("SELECT fence FROM app_threads WHERE thread_id = :thread_id", values).fetchone()
    fence: int = found[0]
    return fence
