"""What can be wrong between an application and its PostgreSQL database. Nothing is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from psycopg import errors, sql

from skeino.errors import SkeinoError
from skeino.persistence.checks import (
    SAMPLE,
    Check,
    checked,
    now,
    of_clock,
    of_connections,
    of_orphans,
    of_schema,
    of_workers,
    unreachable,
)
from skeino.persistence.postgres import schema
from skeino.persistence.postgres.connections import Connection, address_of
from skeino.persistence.postgres.failures import translated_errors
from skeino.persistence.postgres.session import is_own_session
from skeino.persistence.postgres.statements import ACTIVE
from skeino.persistence.registry import CheckpointerSpec

BESIDE_THE_POOL: Final = 2
"""Connections of a process: its writer's, and that of its lease."""

_CHECKS: Final = ("server", "schema", "rights", "pooler", "connections", "orphans", "workers", "clock")

# From one thread to the next by the index: to read all checkpoints takes as long as there are any.
_ORPHANS: Final = """
    WITH RECURSIVE threads (thread_id, number) AS (
        (SELECT thread_id, 1 FROM checkpoints ORDER BY thread_id LIMIT 1)
        UNION ALL
        SELECT (SELECT c.thread_id FROM checkpoints c WHERE c.thread_id > t.thread_id ORDER BY c.thread_id LIMIT 1),
            number + 1
        FROM threads t WHERE t.thread_id IS NOT NULL AND number < %(limit)s
    )
    SELECT thread_id, NOT EXISTS (SELECT FROM app_threads a WHERE a.thread_id = threads.thread_id) AS is_orphan
    FROM threads WHERE thread_id IS NOT NULL
"""
_WORKERS: Final = f"""
    SELECT (SELECT count(*) FROM app_workers WHERE lost_at IS NULL AND expires_at >= statement_timestamp()) AS living,
        count(*) FILTER (WHERE w.worker_id IS NULL) AS without_lease,
        count(*) FILTER (WHERE w.lost_at IS NOT NULL OR w.expires_at < statement_timestamp()) AS lost
    FROM app_runs r LEFT JOIN app_workers w ON w.worker_id = r.worker_id
    WHERE r.{ACTIVE}
"""
_LIMITS: Final = """
    SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
            - coalesce(current_setting('reserved_connections', true), '0')::int AS server,
        (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user) AS role,
        (SELECT datconnlimit FROM pg_database WHERE datname = current_database()) AS database,
        (SELECT count(*)::int FROM pg_stat_activity
            WHERE backend_type = 'client backend' AND application_name <> current_setting('application_name')) AS others
"""


async def examine(spec: CheckpointerSpec, workers: int, lease_seconds: float) -> AsyncIterator[Check]:
    """Look at the spec's database.

    Args:
        spec: as an application has it.
        workers: its processes, on all machines.
        lease_seconds: as set.

    Raises:
        ConfigurationError: the URI is none that PostgreSQL understands, or an option is wrong.
    """
    options, place, _, connect = address_of(spec)
    try:
        with translated_errors(place):
            connection = await _connected(connect)
    except SkeinoError as exc:
        for check in unreachable(exc, _CHECKS):
            yield check
        return
    async with connection:
        patient = _Patient(connection, connect, place, options, workers, lease_seconds)
        version = connection.info.parameter_status("server_version")
        yield Check("reachable", "ok", f"PostgreSQL {version} at {place} answers.")
        async for check in checked({name: getattr(patient, f"of_{name}") for name in _CHECKS}):
            yield check


class _Patient:
    """The database, as one connection sees it."""

    def __init__(
        self,
        connection: Connection,
        connect: Callable[[], Awaitable[Connection]],
        place: str,
        options: dict[str, Any],
        workers: int,
        lease_seconds: float,
    ) -> None:
        self._connection = connection
        self._connect = connect
        self._place = place
        self._options = options
        self._workers = workers
        self._lease_seconds = lease_seconds
        self._has_schema = False
        self._behind_pooler = False

    async def _row(self, statement: str, **values: Any) -> dict[str, Any]:
        (row,) = await self._rows(statement, **values)
        return row

    async def _rows(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        with translated_errors(self._place):
            cursor = await self._connection.execute(statement, values)  # type: ignore[call-overload,unused-ignore]
            return await cursor.fetchall()

    async def of_server(self) -> Check:
        row = await self._row(
            "SELECT pg_is_in_recovery() AS standby, current_setting('transaction_read_only') AS read_only, "
            "current_setting('server_encoding') AS encoding, current_setting('synchronous_commit') AS synchronous, "
            "current_setting('fsync') AS fsync"
        )
        if row["standby"] or row["read_only"] == "on":
            what = "a standby" if row["standby"] else "read-only"
            advice = "Name the primary in the URI: target_session_attrs=read-write finds it among several hosts."
            return Check("server", "failure", f"The server, or the role's default, is {what}.", advice)
        if row["encoding"] != "UTF8":
            sentence = f"The database has the encoding {row['encoding']}, which cannot hold every text."
            return Check("server", "failure", sentence, "Make a database with the encoding UTF8.")
        if "off" in (row["synchronous"], row["fsync"]):
            which = "fsync" if row["fsync"] == "off" else "synchronous_commit"
            sentence = f"{which} is off: what was acknowledged may be lost when the server goes down."
            return Check("server", "warning", sentence, f"Set {which} to on.")
        return Check("server", "ok", "It takes writes, and keeps what it has acknowledged.")

    async def of_schema(self) -> Check:
        with translated_errors(self._place):
            state = await schema.read_state(self._connection)
        check = of_schema(state)
        self._has_schema = not [name for name in state.missing if " " not in name]
        return check

    async def of_rights(self) -> Check:
        """Of the role on the tables; where there are none, to make them."""
        if not self._has_schema:
            row = await self._row(
                "SELECT current_schema() AS name, "
                "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS may"
            )
            if not row["may"]:
                sentence = "Tables are missing, and the role may make none in the schema it would make them in."
                advice = "Run python -m skeino schema --apply as a role that may CREATE, and grant this one the tables."
                return Check("rights", "failure", sentence, advice)
            return Check("rights", "ok", f"The role may make what is missing, in the schema {row['name']!r}.")
        needed = [(table, right) for table in schema.written_tables() for right in _RIGHTS]
        needed += [(table, "SELECT") for table in ("checkpoint_migrations", "app_schema")]
        rows = await self._rows(
            "SELECT name, kind FROM unnest(%(tables)s::text[], %(rights)s::text[]) AS needed (name, kind) "
            "WHERE NOT has_table_privilege(name, kind)",
            tables=[table for table, _ in needed],
            rights=[right for _, right in needed],
        )
        if not rows:
            return Check("rights", "ok", "The role may read and write all tables.")
        lacking: dict[str, list[str]] = {}
        for row in rows:
            lacking.setdefault(row["kind"], []).append(row["name"])
        role = sql.Identifier((await self._row("SELECT current_user AS name"))["name"]).as_string(self._connection)
        grants = [f"GRANT {right} ON {', '.join(tables)} TO {role};" for right, tables in lacking.items()]
        what = "; ".join(f"{right} on {', '.join(tables)}" for right, tables in lacking.items())
        return Check("rights", "failure", f"The role lacks {what}.", f"As the tables' owner: {' '.join(grants)}")

    async def of_pooler(self) -> Check:
        """Two connections that have one session between them are in a pooler's transaction mode."""
        with translated_errors(self._place):
            if await is_own_session(self._connection):
                return Check("pooler", "ok", "There is none between: each connection has a session of its own.")
            self._behind_pooler = True
            try:
                async with self._connection.transaction():
                    await self._connection.execute("SELECT 1")
            except (errors.ProtocolViolation, errors.OperationalError) as exc:
                if "statement pooling" not in str(exc):
                    raise
                sentence = "A pooler in statement mode stands between, which has no transactions."
                return Check("pooler", "failure", sentence, "Set its pool_mode to transaction.")
            ours, others = {await _session(self._connection)}, set[int]()
            async with await _connected(self._connect) as another:
                for _ in range(_ATTEMPTS):
                    others.add(await _session(another))
                    ours.add(await _session(self._connection))
        if not ours & others:
            sentence = "A pooler stands between, in session mode as it seems: each connection keeps a session."
            advice = "Count its pool_size among the connections; in transaction mode fewer would do."
            return Check("pooler", "ok", sentence, advice)
        wrong = [
            name
            for name, is_wrong in (
                ("prepare_threshold to null", self._options["prepare_threshold"] is not None),
                ("pipeline to false", self._options["pipeline"]),
            )
            if is_wrong
        ]
        if wrong:
            sentence = "A pooler in transaction mode stands between, where prepared statements and the pipeline break."
            return Check("pooler", "failure", sentence, f"Set the option {' and '.join(wrong)}.")
        return Check("pooler", "ok", "A pooler in transaction mode stands between, which the options suit.")

    async def of_connections(self) -> Check:
        wanted = self._options["pool_max_size"] + BESIDE_THE_POOL
        if self._behind_pooler:
            total = wanted * self._workers
            sentence = (
                f"{self._workers} × {wanted} connections are {total}, to a pooler, which keeps its limit to itself."
            )
            return Check("connections", "skipped", sentence, f"Its max_client_conn must be above {total}.")
        row = await self._row(_LIMITS)
        limits = {"the server's limit": row["server"]}
        limits |= {f"the {name}'s limit": row[name] for name in ("role", "database") if row[name] >= 0}
        name = min(limits, key=lambda one: limits[one])
        others = row["others"] if name == "the server's limit" else 0
        known = f"{name}, {limits[name]}, less {others} that others have now" if others else name
        return of_connections(wanted, self._workers, limits[name] - others, known)

    async def of_orphans(self) -> Check:
        if not self._has_schema:
            return Check("orphans", "skipped", "There are no tables.")
        rows = await self._rows(_ORPHANS, limit=SAMPLE)
        return of_orphans([row["thread_id"] for row in rows if row["is_orphan"]], len(rows))

    async def of_workers(self) -> Check:
        if not self._has_schema:
            return Check("workers", "skipped", "There are no tables.")
        row = await self._row(_WORKERS)
        return of_workers(row["living"], row["without_lease"], row["lost"], self._lease_seconds)

    async def of_clock(self) -> Check:
        before = now()
        row = await self._row("SELECT clock_timestamp() AS now")
        return of_clock(row["now"], before, now())


_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
_ATTEMPTS: Final = 5


async def _connected(connect: Callable[[], Awaitable[Connection]]) -> Connection:
    """A connection that goes through any pooler, whatever the options say of the application's own."""
    connection = await connect()
    connection.prepare_threshold = None
    return connection


async def _session(connection: Connection) -> int:
    row = await (await connection.execute("SELECT pg_backend_pid() AS pid")).fetchone()
    assert row is not None
    pid: int = row["pid"]
    return pid
