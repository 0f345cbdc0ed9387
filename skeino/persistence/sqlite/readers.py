"""`Readers`: connections that only read. In a write-ahead log no reader waits for another, or for the writer."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

AT_MOST: Final = 2
"""Threads and connections, made when they are needed. One that reads much leaves the other; more are no faster, for
most of the work is Python's, which is done in one thread at a time."""


class Readers:
    """Runs what reads in threads of its own, each time on one snapshot of the file."""

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._threads = ThreadPoolExecutor(AT_MOST, thread_name_prefix="skeino-sqlite-reader")
        self._idle: list[sqlite3.Connection] = []
        self._closed = False

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` results in. A caller that is cancelled loses the answer, the work goes on.

        Raises:
            sqlite3.ProgrammingError: it is closed; or SQLite's own error.
        """
        if self._closed:
            raise sqlite3.ProgrammingError("closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, work)

    async def close(self) -> None:
        """Wait for what was asked for, and close."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown)
        while self._idle:
            self._idle.pop().close()

    def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            connection = self._idle.pop()  # the one that was used last: it has more of the file in its cache
        except IndexError:
            connection = self._connect()
        try:
            connection.execute("BEGIN")  # a checkpoint is read with its writes, whoever deletes both meanwhile
            try:
                return work(connection)
            finally:
                connection.execute("ROLLBACK")
        finally:
            if connection.in_transaction:  # which nothing will end any more
                connection.close()
            else:
                self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        return connection
