"""`SqliteDatabase`: one file, one writer thread, a few readers, shared by the checkpointer and the metadata store.

SQLite has one writer at a time, so this process has one, too: a thread that runs each piece of work from
`BEGIN IMMEDIATE` to `COMMIT` without coming back to the event loop. A cancelled request can therefore leave no
transaction open, which would lock the file for everybody else (https://www.sqlite.org/lang_transaction.html).
Readers do not wait for it: the journal is a write-ahead log.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import unquote

import aiosqlite

from skeino.errors import ConfigurationError, InvalidInputError, SchemaError, StoreError, StoreUnavailableError
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.group_commit import AGAIN, ThreadCommit
from skeino.persistence.one_thread import OneThread
from skeino.persistence.registry import CheckpointerSpec, beginning_of
from skeino.persistence.sqlite import schema
from skeino.persistence.sqlite.readers import Readers
from skeino.persistence.versions import SchemaState

T = TypeVar("T")

BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process's write."""

OPERATION_TIMEOUT = 30.0
"""Seconds that one operation may take, the wait for this process's other writes included."""

_TENTH: Final = 0.1
"""Of a second, in which SQLite is told to wait: so that it seldom has to be told anew."""

OPTIONS: Final[dict[str, tuple[Any, Any]]] = {
    "setup_schema": (bool, True),
    "busy_timeout": ((int, float), BUSY_TIMEOUT),
    "operation_timeout": ((int, float), OPERATION_TIMEOUT),
}
"""`checkpointer_options` of scheme `sqlite`, with their defaults; times are seconds."""


class SqliteDatabase:
    """The open file. `open_database` makes it."""

    def __init__(
        self,
        path: Path,
        writer: sqlite3.Connection,
        reader: aiosqlite.Connection,
        *,
        busy_timeout: float = BUSY_TIMEOUT,
        operation_timeout: float = OPERATION_TIMEOUT,
    ) -> None:
        self.path = path
        self.reader = reader
        """Of LangGraph's saver, which has its connection in `conn`. Nothing here reads through it."""
        self._connection = writer
        self._busy_timeout = busy_timeout
        self._waits: int | None = None  # milliseconds, as the writer's connection has it
        self._operation_timeout = operation_timeout
        self._thread = OneThread("skeino-sqlite")
        self._group: ThreadCommit[_Write] = ThreadCommit(
            self._thread, self._write_batch, f"The SQLite file {path}", patience=operation_timeout
        )
        self._readers = Readers(path, busy_timeout)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction of the writer thread; durable when this returns.

        Works that come while another transaction is being written share the next one. Each is done wholly or not at
        all, whatever becomes of the others. A caller that is cancelled while it waits loses the answer alone.

        Args:
            work: what to do, in the writer's thread. It changes the file alone: it may be called again, after all it
                did was undone.

        Raises:
            StoreUnavailableError: it took too long, or another process kept the file locked, or the disk failed.
            StoreError: SQLite refused it otherwise.
        """
        return await self.enqueue(work)

    def enqueue(self, work: Callable[[sqlite3.Connection], T]) -> asyncio.Future[T]:
        """As `write`, whose answer is the future's result. The work is in its place when this returns."""
        return self._group.enqueue(_Write(work, time.monotonic() + self._busy_timeout))

    async def reading(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work`, which only reads, on one snapshot of the file. Reads wait for no writer.

        Raises:
            StoreUnavailableError, StoreError: as `write`.
        """
        with translated_errors(self.path):
            async with asyncio.timeout(self._operation_timeout):
                return await self._readers.read(work)

    async def read(self, statement: str, parameters: dict[str, Any] | Sequence[Any] = ()) -> list[sqlite3.Row]:
        """The rows of one SELECT."""
        return await self.reading(lambda connection: connection.execute(statement, parameters).fetchall())

    def _write_batch(self, writes: Sequence[_Write]) -> Sequence[Any]:
        with translated_errors(self.path):
            try:
                answers = self._transact(writes)
            except sqlite3.OperationalError as exc:
                if not _reason(exc).startswith("SQLITE_BUSY"):
                    raise
                # Another process has had the lock for as long as the first of them may wait: the others wait on.
                over = max(min(write.deadline for write in writes), time.monotonic() + _TENTH)
                answers = [exc if write.deadline <= over else AGAIN for write in writes]
        return [_translated(answer, self.path) if isinstance(answer, Exception) else answer for answer in answers]

    def _transact(self, writes: Sequence[_Write]) -> Sequence[Any]:
        # From when they were asked for: the waits of those in the queue do not add up.
        patience = min(write.deadline for write in writes) - time.monotonic()
        if len(writes) == 1:
            return self._committed(lambda connection: [writes[0].work(connection)], patience)
        try:
            return self._committed(lambda connection: _together(connection, writes), patience)
        except _HalfDoneError:
            # Another process may have the lock now: whoever has waited so long must not fail for that.
            return self._committed(lambda connection: _one_by_one(connection, writes), self._busy_timeout)

    def _committed(self, work: Callable[[sqlite3.Connection], list[Any]], patience: float) -> list[Any]:
        """What the work answers, once all that it did is durable; nothing of it is done if it raises."""
        connection = self._connection
        if connection.in_transaction:  # one that could not even be rolled back: it would lock out everybody for ever
            connection.execute("ROLLBACK")
        self._let_it_wait(patience)
        try:
            connection.execute("BEGIN IMMEDIATE")  # a deferred one fails when it turns from reading to writing
            answers = work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        return answers

    def _let_it_wait(self, seconds: float) -> None:
        """How long SQLite waits for another process's write."""
        milliseconds = round(1000 * _TENTH) * max(0, round(seconds / _TENTH))
        if milliseconds != self._waits:
            self._connection.execute(f"PRAGMA busy_timeout = {milliseconds}")
            self._waits = milliseconds

    async def close(self) -> None:
        """Let the writer finish what was asked of it, then close all connections; also if it is cancelled meanwhile."""
        await to_its_end(self._close())

    async def _close(self) -> None:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.reader.close)
            stack.push_async_callback(self._readers.close)
            stack.callback(self._thread.end)
            await self._group.close()
            await self._thread.run(self._connection.close)


class _Write(NamedTuple):
    work: Callable[[sqlite3.Connection], Any]
    deadline: float
    """By `time.monotonic()`: until then it waits for another process's write."""


class _HalfDoneError(Exception):
    """One of several writes has failed when it had changed something: all are to be undone, and done again."""


def _together(connection: sqlite3.Connection, writes: Sequence[_Write]) -> list[Any]:
    """The answers of all, without a savepoint for each, which takes a third of a short write's time: SQLite keeps a
    copy of every page that is changed in one.

    Raises:
        _HalfDoneError: one has failed half way. One that has failed before it changed anything is answered with that.
    """
    answers: list[Any] = []
    for write in writes:
        changes = connection.total_changes
        try:
            answers.append(write.work(connection))
        except Exception as exc:
            if not connection.in_transaction or connection.total_changes != changes:
                raise _HalfDoneError from exc
            answers.append(exc)
    return answers


def _one_by_one(connection: sqlite3.Connection, writes: Sequence[_Write]) -> list[Any]:
    """The answers of all, each of which can be undone alone.

    Raises:
        sqlite3.Error: SQLite has undone the whole transaction, as it does when the disk is full.
    """
    return [_in_savepoint(connection, write.work) for write in writes]


def _in_savepoint(connection: sqlite3.Connection, work: Callable[[sqlite3.Connection], Any]) -> Any:
    """What the work results in, or the exception it raised, after which all that it did is undone.

    Raises:
        sqlite3.Error: SQLite has undone the whole transaction, as it does when the disk is full.
    """
    connection.execute("SAVEPOINT work")
    try:
        answer = work(connection)
    except Exception as exc:
        if not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO work")
        answer = exc
    connection.execute("RELEASE work")
    return answer


@asynccontextmanager
async def open_database(spec: CheckpointerSpec) -> AsyncIterator[SqliteDatabase]:
    """Open the spec's file, make it if need be (mode 0600), and bring its schema up to date.

    Raises:
        ConfigurationError: the URI names no usable file.
        SchemaError: with `setup_schema=False`, tables are missing; or the schema is newer than this code.
    """
    options = spec.checked_options(**OPTIONS)
    path = path_of(spec)
    with translated_errors(path):
        if options["setup_schema"]:
            await asyncio.to_thread(_create_privately, path)
            _refuse_read_only(path)
        elif not path.exists():
            raise SchemaError(
                f"There is no file {path}: correct the path; an application with setup_schema=True makes it."
            )
        prepare = schema.create if options["setup_schema"] else schema.verify
        writer = await _made_in_a_thread(lambda: _connect_writer(path, options["busy_timeout"], prepare))
        try:
            reader = await aiosqlite.connect(path, isolation_level=None, timeout=options["busy_timeout"])
        except BaseException:
            writer.close()
            raise
    database = SqliteDatabase(
        path,
        writer,
        reader,
        busy_timeout=options["busy_timeout"],
        operation_timeout=options["operation_timeout"],
    )
    try:
        with translated_errors(path):
            await reader.execute("PRAGMA query_only = ON")
        yield database
    finally:
        await database.close()


async def read_schema(spec: CheckpointerSpec) -> SchemaState:
    """What the spec's file has of the schema; nothing is made.

    Raises:
        ConfigurationError, StoreUnavailableError: as `open_database`.
    """
    path = path_of(spec)

    def read() -> SchemaState:
        if not path.exists():
            with closing(sqlite3.connect(":memory:")) as nothing:
                return schema.read_state(nothing)
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT)) as connection:
            return schema.read_state(connection)

    with translated_errors(path):
        return await asyncio.to_thread(read)


@contextmanager
def translated_errors(path: Path) -> Iterator[None]:
    """Turn sqlite3's errors into skeino's; the message names the file and no value."""
    try:
        yield
    except TimeoutError as exc:
        raise StoreUnavailableError(
            f"The SQLite file {path} was not read in time: what is read is too much, or others read too much."
        ) from exc
    except sqlite3.OperationalError as exc:
        if "no such table" in str(exc) or "no such column" in str(exc):
            raise SchemaError(f"The SQLite file {path} lacks skeino's tables: open it with setup_schema=True.") from exc
        raise StoreUnavailableError(
            f"The SQLite file {path} cannot be used now: {_reason(exc)}.",
            maybe_done=_reason(exc).startswith("SQLITE_IOERR"),  # of a disk that fails while it commits
        ) from exc
    except sqlite3.ProgrammingError as exc:
        if "closed" in str(exc):
            raise StoreUnavailableError(f"The SQLite file {path} is closed.") from exc
        raise InvalidInputError("SQLite cannot store one of the values.") from None
    except sqlite3.DatabaseError as exc:
        if _reason(exc) == "SQLITE_NOTADB":
            raise ConfigurationError(
                f"The file {path} is not a SQLite database ({_reason(exc)}): name another."
            ) from exc
        raise StoreError(f"The SQLite file {path} refused the operation: {_reason(exc)}.") from exc
    except ValueError as exc:
        if str(exc) in ("no active connection", "Connection closed"):  # aiosqlite's words
            raise StoreUnavailableError(f"The SQLite file {path} is closed.") from exc
        raise


def _translated(exc: Exception, path: Path) -> Exception:
    try:
        with translated_errors(path):
            raise exc
    except Exception as translated:
        return translated


def _reason(exc: sqlite3.Error) -> str:
    return getattr(exc, "sqlite_errorname", None) or type(exc).__name__


def path_of(spec: CheckpointerSpec) -> Path:
    """The file that the URI names: a path, or `sqlite:///relative` or `sqlite:////absolute`."""
    uri = spec.required_uri("'skeino.db'").strip()
    prefix, separator, rest = uri.partition("://")
    if separator:
        if prefix.lower() not in ("sqlite", "sqlite3"):
            raise ConfigurationError(
                f"The scheme 'sqlite' needs a file, but checkpointer_uri {beginning_of(uri)}: "
                "set checkpointer_scheme to match it, or name a file."
            )
        if not rest.startswith("/"):
            raise ConfigurationError("A sqlite URI has three slashes before a path: sqlite:///skeino.db.")
        uri = rest[1:]
    if "?" in uri:
        raise ConfigurationError("A sqlite URI takes no '?' parameters here: use checkpointer_options.")
    if separator:
        uri = unquote(uri)
    if uri.startswith("file:") and ":memory:" not in uri:
        raise ConfigurationError("The scheme 'sqlite' needs a plain file path, not one that begins with 'file:'.")
    if ":memory:" in uri or not uri:
        raise ConfigurationError(
            "The scheme 'sqlite' needs a plain file path; for state that dies with the process use "
            "checkpointer_scheme='memory'."
        )
    if "password=" in uri.lower() or re.search(r":[^/]*@", uri):
        raise ConfigurationError(
            "The scheme 'sqlite' needs a file, but checkpointer_uri looks like a server's connection string: "
            "set checkpointer_scheme to match it."
        )
    path = Path(uri).expanduser().absolute()
    if path.is_dir():
        raise ConfigurationError(f"checkpointer_uri names the folder {path}: name a file in it.")
    if not path.parent.is_dir():
        raise ConfigurationError(f"The folder {path.parent} of checkpointer_uri does not exist: make it first.")
    return path


def _create_privately(path: Path) -> None:
    """Make the file readable by its owner only: it holds conversations, and SQLite's default is 0644."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        pass
    except OSError as exc:
        raise ConfigurationError(
            f"The SQLite file {path} cannot be made: {exc.strerror}: let this process's user write to its folder, or "
            "name another file."
        ) from exc


def _refuse_read_only(path: Path) -> None:
    """SQLite's own errors for it come late, differ, and forget the folder, in which it keeps its journal."""
    for place in (path, path.parent):
        if not os.access(place, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
            raise ConfigurationError(
                f"The SQLite file {path} cannot be written to: let this process's user write to {place}, or name "
                "another file."
            )


async def _made_in_a_thread(connect: Callable[[], sqlite3.Connection]) -> sqlite3.Connection:
    """The connection; a caller that is cancelled leaves none open, and none that the thread still uses."""
    making = asyncio.ensure_future(asyncio.to_thread(connect))
    try:
        return await to_its_end(making)
    except asyncio.CancelledError:
        if making.exception() is None:
            making.result().close()
        raise


def _connect_writer(
    path: Path, busy_timeout: float, prepare: Callable[[sqlite3.Connection], object]
) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=busy_timeout, isolation_level=None, check_same_thread=False)
    try:
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"), busy_timeout)
        connection.execute("PRAGMA synchronous = FULL")  # a commit survives a power cut
        connection.execute("PRAGMA foreign_keys = ON")
        _patiently(lambda: prepare(connection), busy_timeout)
    except BaseException:
        connection.close()
        raise
    return connection


def _patiently(work: Callable[[], object], seconds: float) -> None:
    """Repeat what SQLite refuses at once when processes start together: its busy timeout does not cover it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.005, 0.05))
