"""`Readers`: connections that only read. In a write-ahead log no reader waits for another, or for the writer.

What is asked for in one turn of the event loop is read together, on one snapshot: a graph begins with a read, and many
begin together, those whose runs were written in one batch say. To go to a thread and back takes longer than to read a
checkpoint. So a read waits for those of its turn and, while all threads are busy, for one of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from skeino.persistence.one_thread import OneThread, answer

T = TypeVar("T")

AT_MOST: Final = 2
"""Threads and connections, made when they are needed. One that reads much leaves the other; more are no faster, for
most of the work is Python's, which is done in one thread at a time."""

MOST: Final = 16
"""Read together: the first has its answer when all have been read."""

INSTRUCTIONS: Final = 100_000
"""Of SQLite's virtual machine, a millisecond or so, after which it asks whether the caller is still there."""

_Asked = list[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]]]


class Readers:
    """Runs what reads in threads of its own. It belongs to the event loop that it is first used on."""

    def __init__(self, path: Path, busy_timeout: float) -> None:
        self._path = path
        self._busy_timeout = busy_timeout
        self._asked: _Asked = []  # in this turn of the event loop
        self._waiting: deque[_Asked] = deque()  # for a thread
        self._threads = [OneThread(f"skeino-sqlite-reader-{number}") for number in range(AT_MOST)]
        self._idle_threads = [*self._threads]
        self._idle: list[sqlite3.Connection] = []
        self._context = contextvars.Context()  # no request's
        self._closed = False
        self._at_rest = asyncio.Event()  # after that

    async def read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """What `work` results in. A caller that is cancelled loses the answer; SQLite breaks off what it is reading.

        Raises:
            sqlite3.ProgrammingError: it is closed; or SQLite's own error.
        """
        if self._closed:
            raise sqlite3.ProgrammingError("closed")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if not self._asked:
            loop.call_soon(self._begin, context=self._context)
        self._asked.append((work, future))
        return await future

    async def close(self) -> None:
        """Wait for what was asked for, and close."""
        self._closed = True
        if not self._is_at_rest():
            await self._at_rest.wait()
        for thread in self._threads:
            thread.end()
        while self._idle:
            self._idle.pop().close()

    def _begin(self) -> None:
        asked, self._asked = self._asked, []
        self._waiting.extend(asked[begin : begin + MOST] for begin in range(0, len(asked), MOST))
        self._go_on()

    def _go_on(self) -> None:
        while self._waiting and self._idle_threads:
            asked = [one for one in self._waiting.popleft() if not one[1].done()]  # whose caller is still there
            if asked:
                self._ask(self._idle_threads.pop(), asked)
        if self._closed and self._is_at_rest():
            self._at_rest.set()

    def _is_at_rest(self) -> bool:
        return not self._asked and not self._waiting and len(self._idle_threads) == AT_MOST

    def _ask(self, thread: OneThread, asked: _Asked) -> None:
        have_read = partial(self._have_read, thread, asked)
        try:
            thread.ask(partial(self._read, asked), have_read)
        except Exception as exc:  # it cannot be started
            asyncio.get_running_loop().call_soon(have_read, None, exc)

    def _have_read(self, thread: OneThread, asked: _Asked, answers: Any, failure: BaseException | None) -> None:
        self._idle_threads.append(thread)
        for (_, future), (result, own) in zip(asked, answers or [(None, failure)] * len(asked), strict=True):
            answer(future, result, own)
        self._go_on()

    def _read(self, asked: _Asked) -> list[tuple[Any, BaseException | None]]:
        """For each what it results in, or what it raised; nothing, if its caller has gone."""
        try:
            connection = self._idle.pop()  # the one that was used last: it has more of the file in its cache
        except IndexError:
            connection = self._connect()
        answers: list[tuple[Any, BaseException | None]] = []
        try:
            for work, future in asked:
                if future.done():
                    answers.append((None, None))
                    continue
                connection.set_progress_handler(future.done, INSTRUCTIONS)
                try:
                    if not connection.in_transaction:
                        connection.execute("BEGIN")  # what belongs together is read together, whoever deletes meanwhile
                    answers.append((work(connection), None))
                except Exception as exc:
                    answers.append((None, exc))
            connection.set_progress_handler(None, 0)  # which would keep the last answer
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        finally:
            if connection.in_transaction:  # which nothing will end any more
                connection.close()
            else:
                self._idle.append(connection)
        return answers

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._path, timeout=self._busy_timeout, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = ON")
        return connection
