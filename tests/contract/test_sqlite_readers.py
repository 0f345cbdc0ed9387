"""SQLite: what is asked for in one turn of the event loop is read together; each has its own answer."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from skeino.persistence.one_thread import OneThread
from skeino.persistence.sqlite.readers import AT_MOST, MOST, Readers


@pytest.fixture
async def readers(tmp_path: Path) -> AsyncIterator[Readers]:
    path = tmp_path / "numbers.db"
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode = WAL")
    writer.execute("CREATE TABLE numbers (number INTEGER)")
    readers = Readers(path, 1.0)
    yield readers
    await readers.close()
    writer.close()


def number_of_rows(connection: sqlite3.Connection) -> int:
    found: int = connection.execute("SELECT count(*) FROM numbers").fetchone()[0]
    return found


def writing(readers: Readers) -> Callable[[sqlite3.Connection], int]:
    """Has somebody else write a row, after it has read how many there are."""

    def work(connection: sqlite3.Connection) -> int:
        found = number_of_rows(connection)
        other = sqlite3.connect(readers._path, isolation_level=None)
        other.execute("INSERT INTO numbers VALUES (1)")
        other.close()
        return found

    return work


async def test_what_is_asked_for_in_one_turn_is_read_by_one_thread_on_one_snapshot(readers: Readers) -> None:
    threads: set[str] = set()

    def work(connection: sqlite3.Connection) -> int:
        threads.add(threading.current_thread().name)
        return number_of_rows(connection)

    assert await asyncio.gather(*(readers.read(one) for one in (writing(readers), work, work))) == [0, 0, 0]
    assert len(threads) == 1
    assert await readers.read(number_of_rows) == 1, "what is asked for later sees it"


async def test_many_are_read_in_parts_and_a_long_one_keeps_another_turns_reads_from_nothing(readers: Readers) -> None:
    go_on, batches = threading.Event(), []
    read = readers._read

    def noting(asked: Any) -> Any:
        batches.append(len(asked))
        return read(asked)

    readers._read = noting  # type: ignore[method-assign]
    long = asyncio.create_task(readers.read(lambda _: go_on.wait(30)))
    await asyncio.sleep(0.05)
    assert await asyncio.gather(*(readers.read(number_of_rows) for _ in range(2 * MOST + 1))) == [0] * (2 * MOST + 1)
    assert not long.done()
    go_on.set()
    assert await long
    assert batches == [1, MOST, MOST, 1]


async def test_one_that_fails_fails_alone(readers: Readers) -> None:
    def failing(connection: sqlite3.Connection) -> object:
        return connection.execute("SELECT * FROM nothing")

    def ending(connection: sqlite3.Connection) -> object:
        connection.execute("ROLLBACK")
        raise StopIteration

    answers = await asyncio.gather(
        *(readers.read(one) for one in (failing, ending, number_of_rows)), return_exceptions=True
    )
    assert [type(one) for one in answers] == [sqlite3.OperationalError, RuntimeError, int]
    assert await readers.read(lambda connection: connection.in_transaction)


async def test_one_that_writes_is_refused(readers: Readers) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await readers.read(lambda connection: connection.execute("INSERT INTO numbers VALUES (1)"))


async def test_what_nobody_waits_for_is_not_begun(readers: Readers) -> None:
    done: list[int] = []
    tasks = [
        asyncio.create_task(readers.read(partial(lambda number, _: done.append(number), number))) for number in range(3)
    ]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert done == [0, 2]


async def test_what_nobody_waits_for_any_more_is_left_out_when_its_turn_comes(readers: Readers) -> None:
    go_on, begun, done = threading.Event(), threading.Event(), list[str]()

    def long(_: object) -> None:
        begun.set()
        assert go_on.wait(30)

    works = (long, lambda _: done.append("cancelled"), lambda _: done.append("waited for"))
    tasks = [asyncio.create_task(readers.read(work)) for work in works]
    await asyncio.to_thread(begun.wait, 30)
    tasks[1].cancel()
    await asyncio.sleep(0)
    go_on.set()
    await asyncio.wait(tasks)
    assert done == ["waited for"]


async def test_what_nobody_waits_for_any_more_is_broken_off(readers: Readers) -> None:
    def endless(connection: sqlite3.Connection) -> object:
        begun.set()
        statement = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
        return connection.execute(statement).fetchone()

    for _ in range(2 * AT_MOST):
        begun = threading.Event()
        task = asyncio.create_task(readers.read(endless))
        await asyncio.to_thread(begun.wait, 30)
        task.cancel()
    async with asyncio.timeout(30):
        assert await readers.read(number_of_rows) == 0


async def test_closing_waits_for_what_was_asked_for(readers: Readers) -> None:
    go_on = threading.Event()
    tasks = []
    for _ in range(AT_MOST + 1):  # the last for want of a thread
        tasks.append(asyncio.create_task(readers.read(lambda _: go_on.wait(30))))
        await asyncio.sleep(0.01)
    closing = asyncio.create_task(readers.close())
    await asyncio.sleep(0.05)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await readers.read(number_of_rows)
    assert not closing.done()
    go_on.set()
    await closing
    assert [task.result() for task in tasks] == [True] * 3
    assert not readers._idle


async def test_closing_waits_for_what_was_asked_for_in_the_same_turn(readers: Readers) -> None:
    asked = asyncio.create_task(readers.read(number_of_rows))
    await asyncio.sleep(0)
    await readers.close()
    assert asked.result() == 0


async def test_where_no_thread_can_be_started_each_is_told_and_later_ones_are_read(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(OneThread, "ask", lambda *_: exec("raise RuntimeError('no thread')"))
        asked = [readers.read(number_of_rows) for _ in range((AT_MOST + 1) * MOST)]
        answers = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5)
    assert {str(one) for one in answers} == {"no thread"}
    assert await readers.read(number_of_rows) == 0
