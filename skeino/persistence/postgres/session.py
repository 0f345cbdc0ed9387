"""`Session`: the connection of the process's writer, whose statements the server plans once.

A statement over arrays takes the server longer to plan than to run, so it is prepared, and its plan kept. Such a plan
must suit a table that grows: this session's settings leave the planner none that reads all of a table.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, AsyncCursor, errors
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.rows import DictRow, dict_row

from skeino.errors import StoreUnavailableError

Connection = AsyncConnection[DictRow]

PATIENCE: Final = 0.2
"""Seconds that writes wait for another session's lock while more arrive behind them."""

SETTINGS: Final = f"""
    SET lock_timeout = {round(1000 * PATIENCE)};
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_bitmapscan = off;
    SET jit = off
"""

POOL_SETTINGS: Final = """
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off
"""
"""Of a connection that reads, which keeps the plans of a few statements. What reads whole tables says otherwise."""

_GRACE: Final = 1.0
"""Seconds that the server has to cancel a statement, before the connection is hung up."""

_LOST_PLANS: Final = (errors.InvalidSqlStatementName, errors.DuplicatePreparedStatement)
LOST_PLANS: Final = tuple(error.sqlstate for error in _LOST_PLANS)
"""What a statement fails with whose plan is in another session. It was not run."""


class Session:
    """One connection, opened again when it is needed after it was lost.

    Behind a pooler, which gives each transaction another session, nothing is prepared and nothing is set.

    Args:
        connect: opens a connection in autocommit mode, within a time limit.
        patience: seconds in which a server that cannot be reached is tried again, as a pool would.
        limit: seconds that a statement may take, by its caller.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], *, patience: float, limit: float = float("inf")
    ) -> None:
        self._connect = connect
        self._patience = patience
        self._limit = limit
        self._connection: Connection | None = None
        self.is_own = False
        """Whether the server's session is this connection's alone, as far as is known, and has `SETTINGS`."""
        self._may_prepare = True

    async def open(self) -> None:
        """Connect, if it is not connected.

        Raises:
            psycopg.Error, StoreUnavailableError: as `fetch`.
        """
        await self._connected()

    async def fetch(self, statement: str, values: Mapping[str, Any]) -> list[DictRow]:
        """The rows of one statement, which is a transaction of its own. One at a time.

        Raises:
            psycopg.Error: what the server or the connection failed with. A connection in doubt is closed.
            StoreUnavailableError: it cannot be reached.
        """
        connection = await self._connected()
        try:
            return await self._rows(connection, statement, values)
        except _LOST_PLANS:  # a pooler that passes its servers' numbers on: the statement was not run
            self.prepare_no_more()
            await self.close()
            return await self._rows(await self._connected(), statement, values)

    def prepare_no_more(self) -> None:
        """There is a pooler, after all."""
        self._may_prepare = self.is_own = False

    async def close(self) -> None:
        """Close the connection. The next statement opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _rows(self, connection: Connection, statement: str, values: Mapping[str, Any]) -> list[DictRow]:
        try:
            with hung_up_after(self._limit, connection):
                cursor = connection.cursor(row_factory=_rows_that_are_there)
                await cursor.execute(statement, values, prepare=self.is_own)  # type: ignore[call-overload,unused-ignore]
                return await cursor.fetchall() if _has_rows(cursor) else []
        except errors.ReadOnlySqlTransaction:  # a standby: look for the new primary
            await self.close()
            raise
        finally:
            # Not idle: it was cancelled, say, or is broken.
            if connection.info.transaction_status is not TransactionStatus.IDLE:
                await self.close()

    async def _connected(self) -> Connection:
        if self._connection is not None and not is_alive(self._connection):
            await self.close()
        if self._connection is None:
            connection = await self._connected_in_time()
            try:
                self.is_own = self._may_prepare and await is_own_session(connection)
                if self.is_own:
                    connection.prepare_threshold = 0  # None, as the pool has it, would refuse to prepare at all
                    await connection.execute(SETTINGS, prepare=False)
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
        return self._connection

    async def _connected_in_time(self) -> Connection:
        deadline = time.monotonic() + self._patience
        delay = 0.05
        while True:
            try:
                return await self._connect()
            except StoreUnavailableError:
                if time.monotonic() + delay > deadline:
                    raise
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(2 * delay, 1.0)


async def is_own_session(connection: Connection) -> bool:
    """Whether no pooler stands between. One that does makes up the number by which the session can be cancelled,
    for it cannot tell a client which of its servers' sessions it will have.
    """
    cursor = await connection.execute("SELECT pg_backend_pid() AS pid")
    row = await cursor.fetchone()
    return row is not None and row["pid"] == connection.info.backend_pid


def _has_rows(cursor: AsyncCursor[Any]) -> bool:
    return cursor.pgresult is not None and cursor.pgresult.ntuples > 0


def _rows_that_are_there(cursor: AsyncCursor[Any]) -> Callable[[Sequence[Any]], DictRow]:
    """`dict_row`, which reads the columns' names each time; most writes result in no row, and need none."""
    return dict_row(cursor) if _has_rows(cursor) else dict


@contextmanager
def hung_up_after(seconds: float, connection: AsyncConnection[Any]) -> Iterator[None]:
    """Hang up soon after a statement should have been given up: its connection is of no use any more then.

    Whoever is cancelled while a statement runs has it cancelled in the server, and waits for that. A network that
    swallows everything never brings the answer, and some versions of psycopg wait for ever.
    """
    if seconds == float("inf"):
        yield
        return
    timer = asyncio.get_running_loop().call_later(seconds + _GRACE, _hang_up, connection)
    try:
        yield
    finally:
        timer.cancel()


def _hang_up(connection: AsyncConnection[Any]) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)  # what waits for the server reads the end of the stream


def is_alive(connection: AsyncConnection[Any]) -> bool:
    """Whether the server still holds this idle connection, as far as can be told without a round trip.

    An idle connection has nothing to read unless the server said good-bye: a poll of its socket takes
    microseconds, where `SELECT 1` doubles the round trips of a short operation.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    try:
        while poll.poll(0):  # first its last words, then the end of the stream
            connection.pgconn.consume_input()
            if connection.pgconn.status != ConnStatus.OK:
                return False
    except psycopg.OperationalError:
        return False
    return True
