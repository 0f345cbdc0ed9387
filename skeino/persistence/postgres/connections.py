"""`PostgresDatabase`: the process's one pool, shared by the checkpointer and the metadata store."""

from __future__ import annotations

import asyncio
import sys
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
from psycopg import AsyncConnection, conninfo, errors
from psycopg.rows import DictRow, dict_row
from psycopg_pool import AsyncConnectionPool

from skeino.errors import ConfigurationError, StoreUnavailableError
from skeino.persistence.postgres import schema
from skeino.persistence.postgres.failures import connection_problem, translated_errors
from skeino.persistence.postgres.session import POOL_SETTINGS, Session, hung_up_after, is_alive
from skeino.persistence.postgres.writer import Writer, repeated_if_undone
from skeino.persistence.registry import CheckpointerSpec, beginning_of
from skeino.persistence.repeating import repeated
from skeino.persistence.versions import SchemaState

T = TypeVar("T")
Connection = AsyncConnection[DictRow]

NUMBER: Final = (int, float)
OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "setup_schema": (bool, True),
    "pool_min_size": (int, 1),
    "pool_max_size": (int, 10),
    "pool_timeout": (NUMBER, 5.0),
    "pool_max_waiting": (int, 1000),
    "connect_timeout": (NUMBER, 5.0),
    "operation_timeout": (NUMBER, 30.0),
    "prepare_threshold": ((int, type(None)), None),
    "pipeline": (bool, False),
}
"""`checkpointer_options` of scheme `postgres`, with their defaults; times are seconds.

The defaults suit a web server, and PgBouncer in transaction mode: no prepared statements (`prepare_threshold`)
and no pipeline mode, which break behind it; bounded waits, where psycopg_pool's own are 30 s and unbounded.
"""

_KEEPALIVE: Final = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 5, "keepalives_count": 3}
_TCP_USER_TIMEOUT_MS: Final = 10_000  # a link that was dropped in silence is given up after this long


class PostgresDatabase:
    """The open pool. `open_database` makes it."""

    def __init__(
        self,
        pool: AsyncConnectionPool[Connection],
        parameters: Mapping[str, Any],
        connect: Callable[[], Awaitable[Connection]],
        place: str,
        operation_timeout: float,
        pipeline: bool,
    ) -> None:
        self.pool = pool
        self.parameters = parameters
        """Of the pool's connections, for one beside them."""
        self.place = place
        """Host, port and database, for messages."""
        self.pipeline = pipeline
        self._operation_timeout = operation_timeout
        self._patience = min(pool.timeout, operation_timeout)  # what has taken too long is not begun again
        self._returning: set[asyncio.Future[None]] = set()
        self._session = Session(connect, patience=pool.timeout, limit=operation_timeout)
        self.writer = Writer(
            self.fetch,
            self._fetch_in_session,
            lambda: self._session.is_own,
            place,
            operation_timeout=operation_timeout,
            patience=self._patience,
        )

    async def keeps_plans(self, connection: Connection) -> bool:
        """Whether what is executed with `prepare=True` on this connection is, and planned once: if no pooler stands
        between. It must read few rows by an index.
        """
        if self._session.is_own and connection.prepare_threshold is None:
            await connection.execute(POOL_SETTINGS)
            connection.prepare_threshold = sys.maxsize  # what asks for it, and nothing else; with None not even that
        return self._session.is_own

    def prepare_no_more(self) -> None:
        """There is a pooler, after all."""
        self._session.prepare_no_more()

    async def open(self) -> None:
        """Open the writer's session; the pool is open already."""
        with translated_errors(self.place):
            await self._session.open()

    async def close(self) -> None:
        """Write what waits to be written, and close the writer's session; the pool is its opener's."""
        try:
            await self.writer.close()
        finally:
            await self._session.close()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A checked connection in autocommit mode, for one operation of bounded length.

        Raises:
            StoreUnavailableError: there is none in time, or it broke, or the operation took too long.
            InvalidInputError, SchemaError, StoreError: as `translated_errors`.
        """
        with translated_errors(self.place):
            async with asyncio.timeout(self._operation_timeout):
                connection = await self._checked_out()
                try:
                    with hung_up_after(self._operation_timeout, connection):
                        yield connection
                except errors.ReadOnlySqlTransaction:  # a standby: the pool must look for the new primary
                    await connection.close()
                    raise
                finally:
                    await self._give_back(connection)

    async def _give_back(self, connection: Connection) -> None:
        """Return it to the pool; where that has to wait, in a task: a cancelled `putconn` loses the connection."""
        returning = self.pool.putconn(connection)
        try:
            waited_for = returning.send(None)
        except StopIteration:  # there was nothing to wait for, as nearly always: then nothing can be cancelled
            return
        task = asyncio.ensure_future(_rest_of(returning, waited_for))
        self._returning.add(task)
        task.add_done_callback(self._returning.discard)
        await asyncio.shield(task)

    async def _checked_out(self) -> Connection:
        """A connection that is alive. The pool's own `check` waits a second and more after each dead one it finds,
        so a pool whose connections were all killed would be of no use until its time limit.
        """
        deadline = time.monotonic() + self.pool.timeout
        while True:
            connection = await self.pool.getconn(timeout=deadline - time.monotonic())
            if is_alive(connection):
                return connection
            await connection.close()
            await self._give_back(connection)  # which makes the pool open another

    async def fetch(self, statement: str, values: Mapping[str, Any], *, repeatable: bool = False) -> list[DictRow]:
        """The rows of one statement, which is a transaction of its own.

        Args:
            statement: the SQL.
            values: its parameters.
            repeatable: a second time changes nothing: it is run again if the connection is lost meanwhile, or if it
                was the one of a deadlock's that was undone.
        """
        if repeatable:
            return await self.repeated(lambda: repeated_if_undone(lambda: self.fetch(statement, values)))
        async with self.connection() as connection:
            cursor = await connection.execute(statement, values)  # type: ignore[call-overload,unused-ignore]
            return await cursor.fetchall() if cursor.description else []

    async def repeated(self, operation: Callable[[], Awaitable[T]]) -> T:
        """What an operation results in of which a second time changes nothing; it takes a connection each time."""
        return await repeated(operation, patience=self._patience)

    async def _fetch_in_session(self, statement: str, values: Mapping[str, Any]) -> list[DictRow]:
        """As `fetch`, on the writer's own connection."""
        with translated_errors(self.place):
            async with asyncio.timeout(self._operation_timeout):
                return await self._session.fetch(statement, values)


@types.coroutine
def _rest_of(coroutine: Coroutine[Any, Any, None], waited_for: Any) -> Generator[Any, Any, None]:
    """What is left of a coroutine that has begun, and waits for this."""
    while True:
        try:
            answer = yield waited_for
        except BaseException as exc:
            step = partial(coroutine.throw, exc)
        else:
            step = partial(coroutine.send, answer)
        try:
            waited_for = step()
        except StopIteration:
            return


@asynccontextmanager
async def open_database(spec: CheckpointerSpec) -> AsyncIterator[PostgresDatabase]:
    """Open the pool of the spec's database and bring its schema up to date; options are `OPTIONS`.

    Raises:
        ConfigurationError: the URI is none that PostgreSQL understands, or an option is wrong.
        StoreUnavailableError: the database cannot be reached; the message names host, port and database.
        SchemaError: with `setup_schema=False`, tables are missing; or they may not be made.
    """
    options, place, parameters, connect = address_of(spec)
    with translated_errors(place):
        async with await connect() as connection:
            if options["setup_schema"]:
                await schema.create(connection, connect)
            else:
                await schema.verify(connection)
    pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
        "",
        kwargs=parameters,
        min_size=options["pool_min_size"],
        max_size=options["pool_max_size"],
        timeout=options["pool_timeout"],
        max_waiting=options["pool_max_waiting"],
        reconnect_timeout=options["pool_timeout"],
        name="skeino",
        open=False,
    )
    try:
        await pool.open()
        database = PostgresDatabase(pool, parameters, connect, place, options["operation_timeout"], options["pipeline"])
        try:
            await database.open()
            yield database
        finally:
            await database.close()
    finally:
        await pool.close(timeout=options["pool_timeout"])


async def read_schema(spec: CheckpointerSpec) -> SchemaState:
    """What the spec's database has of the schema; nothing is made.

    Raises:
        ConfigurationError, StoreUnavailableError: as `open_database`.
    """
    _, place, _, connect = address_of(spec)
    with translated_errors(place):
        async with await connect() as connection:
            return await schema.read_state(connection)


def address_of(
    spec: CheckpointerSpec,
) -> tuple[dict[str, Any], str, dict[str, Any], Callable[[], Awaitable[Connection]]]:
    """The checked options, the place's name for messages, the connections' parameters, and what makes one.

    Raises:
        ConfigurationError: the URI is none that PostgreSQL understands, or an option is wrong.
    """
    options = spec.checked_options(**OPTIONS)
    given = _parameters_of(spec)
    place = _place_of(given)
    parameters: dict[str, Any] = {
        "autocommit": True,
        "row_factory": dict_row,
        "prepare_threshold": options["prepare_threshold"],
        "connect_timeout": max(2, round(options["connect_timeout"])),
        "application_name": "skeino",
        "tcp_user_timeout": _TCP_USER_TIMEOUT_MS,
        **_KEEPALIVE,
        **given,
        "client_encoding": "UTF8",  # of all texts, whatever the database's own is
    }
    if not 0 <= options["pool_min_size"] <= options["pool_max_size"] or options["pool_max_size"] < 1:
        raise ConfigurationError("pool_min_size must be at most pool_max_size, and pool_max_size at least 1.")
    if options["pool_max_waiting"] < 1:
        raise ConfigurationError("pool_max_waiting must be at least 1: psycopg_pool takes 0 for unbounded.")

    async def connect() -> Connection:
        try:
            async with asyncio.timeout(options["connect_timeout"] * (1 + str(given.get("host")).count(","))):
                return await AsyncConnection.connect("", **parameters)
        except psycopg.Error as exc:  # its text may carry a part of the password
            problem = connection_problem(exc)
        raise StoreUnavailableError(f"PostgreSQL at {place} cannot be reached: {problem}.")

    return options, place, parameters, connect


def _parameters_of(spec: CheckpointerSpec) -> dict[str, Any]:
    uri = spec.required_uri("'postgresql://user@localhost:5432/mydb'").strip()
    prefix, separator, _ = uri.partition("://")
    if separator and prefix.lower() not in ("postgresql", "postgres"):
        raise ConfigurationError(
            f"The scheme 'postgres' needs a PostgreSQL URI, but checkpointer_uri {beginning_of(uri)}: "
            "set checkpointer_scheme to match it, or begin it with postgresql://."
        )
    if not separator and "=" not in uri:
        raise ConfigurationError(
            "checkpointer_uri is no PostgreSQL connection string: write postgresql://user@host:5432/database."
        )
    try:
        parameters = conninfo.conninfo_to_dict(uri)
        if not separator or _looks_whole(parameters):
            return parameters
    except psycopg.ProgrammingError:
        pass  # its text repeats the string, password and all: ours is raised outside, and does not refer to it
    raise ConfigurationError(
        "checkpointer_uri is no PostgreSQL connection string: write postgresql://user@host:5432/database, and "
        "percent-encode special characters of the password."
    )


def _looks_whole(parameters: dict[str, Any]) -> bool:
    """False where an '@' or a '/' of the password stands for itself, and libpq has cut the URI there: the rest of
    the password is in the host, the port or the database's name then.
    """
    host, port, database = (str(parameters.get(name) or "") for name in ("host", "port", "dbname"))
    cut_host = "@" in host or ("/" in host and not host.startswith("/"))
    cut_port = port.replace(",", "").strip("0123456789") != ""
    return not (cut_host or cut_port or "@" in database)


def _place_of(parameters: dict[str, Any]) -> str:
    """Host, port and database, for messages; what the URI leaves out comes from libpq's variables and defaults."""
    defaults = {one.keyword.decode(): one.val.decode() for one in psycopg.pq.Conninfo.get_defaults() if one.val}
    known = {**defaults, **parameters}
    host = known.get("host") or known.get("hostaddr") or "the local socket"
    return f"{host}:{known.get('port') or 5432}/{known.get('dbname') or known.get('user') or ''}"
