"""Writes that come together are committed together: each is answered, in order, once, and for itself."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings
from skeino.errors import StoreError, StoreUnavailableError
from skeino.persistence import SqliteMetadataStore, open_persistence
from skeino.persistence.group_commit import GroupCommit
from skeino.persistence.sqlite.database import SqliteDatabase
from skeino.testing import ending, started
from tests.asgi.graphs import compiled

variable: ContextVar[str] = ContextVar("variable", default="none")


class Disk:
    """Writes numbers when it is let, and refuses negative ones; notes each batch."""

    def __init__(self, **limits: Any) -> None:
        self.batches: list[list[int]] = []
        self.turn = asyncio.Event()
        self.turn.set()
        self.failure: BaseException | None = None
        self.group: GroupCommit[int] = GroupCommit(self.write_batch, "The disk", **limits)

    async def write_batch(self, numbers: Sequence[int]) -> list[Any]:
        self.batches.append(list(numbers))
        assert variable.get() == "none"
        await self.turn.wait()
        if self.failure is not None:
            raise self.failure
        return [ValueError(number) if number < 0 else number * 10 for number in numbers]


async def test_a_write_that_comes_alone_goes_at_once_and_those_that_come_meanwhile_go_together() -> None:
    disk = Disk()
    assert await disk.group.write(1) == 10
    disk.turn.clear()
    writes = [asyncio.create_task(disk.group.write(number)) for number in (2, 3, 4, 5)]
    await asyncio.sleep(0.01)
    late = [asyncio.create_task(disk.group.write(number)) for number in (6, 7)]
    await asyncio.sleep(0.01)
    disk.turn.set()
    assert await asyncio.gather(*writes, *late) == [20, 30, 40, 50, 60, 70]
    assert disk.batches == [[1], [2, 3, 4, 5], [6, 7]]


async def test_what_is_committed_before_the_rest_of_its_batch_is_answered_before() -> None:
    goes_on = asyncio.Event()

    async def in_two_parts(numbers: Sequence[int]) -> list[Any]:
        group.answer(1, ValueError("bad") if fails else 20)
        await goes_on.wait()
        if fails:
            raise OSError
        return [number * 10 for number in numbers]

    group: GroupCommit[int] = GroupCommit(in_two_parts, "The disk")
    for fails in (False, True):
        goes_on.clear()
        first, second, third = [group.enqueue(number) for number in (1, 2, 3)]
        await asyncio.wait([second], timeout=5)
        assert not first.done()
        assert not group.is_idle
        goes_on.set()
        answers = await asyncio.gather(first, second, third, return_exceptions=True)
        assert [repr(answer) for answer in answers] == (
            ["OSError()", "ValueError('bad')", "OSError()"] if fails else ["10", "20", "30"]
        )
    await group.close()


async def test_what_takes_longer_than_its_batch_may_be_answered_before_it_too() -> None:
    goes_on = asyncio.Event()

    async def in_two_parts(numbers: Sequence[int]) -> list[Any]:
        by_itself = asyncio.ensure_future(asyncio.sleep(0, 10))
        group.answer(0, by_itself)
        await goes_on.wait()
        return [by_itself, 20]

    group: GroupCommit[int] = GroupCommit(in_two_parts, "The disk")
    first, second = group.enqueue(1), group.enqueue(2)
    assert await asyncio.wait_for(first, 5) == 10
    assert not second.done()
    goes_on.set()
    assert await second == 20
    await group.close()


async def test_halves_take_turns_where_there_are_many() -> None:
    disk = Disk(halves=6)

    async def writer(number: int) -> None:
        for _ in range(3):
            await disk.group.write(number)

    async with asyncio.TaskGroup() as writers:
        for number in range(12):
            writers.create_task(writer(number))
    first, second = [*range(6)], [*range(6, 12)]
    assert disk.batches[:4] == [first, second, first, second]
    disk.batches.clear()
    async with asyncio.TaskGroup() as writers:
        for number in range(10):
            writers.create_task(writer(number))
    assert disk.batches == [[*range(10)]] * 3, "too few for halves"


async def test_what_few_answers_lead_to_shares_the_next_batch() -> None:
    disk = Disk()
    disk.turn.clear()
    first = asyncio.create_task(disk.group.write(1))

    async def after_it() -> int:
        await first
        return int(await disk.group.write(3))

    third = asyncio.create_task(after_it())
    await asyncio.sleep(0.01)
    second = asyncio.create_task(disk.group.write(2))
    await asyncio.sleep(0.01)
    disk.turn.set()
    assert [await second, await third] == [20, 30]
    assert disk.batches == [[1], [2, 3]]


async def test_it_is_idle_as_soon_as_all_are_answered_and_not_before() -> None:
    disk = Disk()
    idle = [disk.group.is_idle]
    assert await disk.group.write(1) == 10
    idle.append(disk.group.is_idle)  # at once: whoever deletes what was just written does not wait
    disk.turn.clear()
    first = asyncio.create_task(disk.group.write(2))
    await asyncio.sleep(0.01)
    idle.append(disk.group.is_idle)
    disk.turn.set()
    assert await first == 20
    idle.append(disk.group.is_idle)
    disk.failure = StoreError("It broke.")
    with pytest.raises(StoreError):
        await disk.group.write(4)
    assert [*idle, disk.group.is_idle] == [True, True, False, True, True]


async def test_a_bad_write_is_answered_with_its_own_error_and_its_neighbours_are_not() -> None:
    disk = Disk()
    answers = await asyncio.gather(*(disk.group.write(number) for number in (1, -2, 3)), return_exceptions=True)
    assert answers[::2] == [10, 30]
    assert isinstance(answers[1], ValueError)
    assert len(disk.batches) == 1


async def test_a_batch_that_fails_fails_all_its_writers_and_the_next_one_goes_on() -> None:
    disk = Disk()
    disk.failure = StoreError("the disk is broken")
    answers = await asyncio.gather(*(disk.group.write(number) for number in (1, 2)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["the disk is broken"] * 2
    disk.failure = None
    assert await disk.group.write(3) == 30


async def test_a_cancelled_writer_loses_its_answer_alone() -> None:
    disk = Disk()
    disk.turn.clear()
    writes = [asyncio.create_task(disk.group.write(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0)
    writes[0].cancel()  # it waits to be written
    await asyncio.sleep(0.01)
    writes[1].cancel()  # it is being written
    await asyncio.sleep(0)
    disk.turn.set()
    answers = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(answer) for answer in answers] == [asyncio.CancelledError, asyncio.CancelledError, int]
    await disk.group.close()
    assert sorted(number for batch in disk.batches for number in batch) == [1, 2, 3]


async def test_a_batch_has_its_largest_size_and_the_queue_too() -> None:
    disk = Disk(max_batch=2, max_waiting=3)
    disk.turn.clear()
    first = asyncio.create_task(disk.group.write(0))
    await asyncio.sleep(0.01)
    writes = [asyncio.create_task(disk.group.write(number)) for number in (1, 2, 3)]
    await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailableError, match="3 writes wait already"):
        await disk.group.write(4)
    disk.turn.set()
    assert await asyncio.gather(first, *writes) == [0, 10, 20, 30]
    assert disk.batches == [[0], [1, 2], [3]]


async def test_closing_waits_for_what_is_queued_and_takes_no_more() -> None:
    disk = Disk(max_batch=1)
    disk.turn.clear()
    writes = [asyncio.create_task(disk.group.write(number)) for number in (1, 2)]
    await asyncio.sleep(0.01)
    closing = asyncio.create_task(disk.group.close())
    await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailableError, match="closed"):
        await disk.group.write(3)
    assert not closing.done()
    disk.turn.set()
    await closing
    assert await asyncio.gather(*writes) == [10, 20]


async def test_a_batch_inherits_no_callers_context() -> None:
    disk = Disk()
    variable.set("mine")
    assert await disk.group.write(1) == 10  # the disk looks


async def test_what_is_queued_is_written_though_nobody_waits_yet() -> None:
    disk = Disk()
    answers = [disk.group.enqueue(number) for number in (1, -2, 3)]
    await asyncio.wait(answers)
    assert disk.batches == [[1, -2, 3]]
    assert [answers[0].result(), type(answers[1].exception()), answers[2].result()] == [10, ValueError, 30]


async def test_when_the_writer_is_cancelled_what_waits_is_written() -> None:
    disk = Disk(max_batch=1)
    disk.turn.clear()
    first, *others = [disk.group.enqueue(number) for number in (1, 2, 3)]
    await asyncio.sleep(0.01)
    assert disk.group._writer is not None
    disk.group._writer.cancel()
    disk.turn.set()
    async with asyncio.timeout(1):
        assert await asyncio.gather(*others) == [20, 30]
    assert first.cancelled()


async def test_when_the_writer_is_cancelled_before_it_begins_all_is_written() -> None:
    disk = Disk()
    answer = disk.group.enqueue(1)
    assert disk.group._writer is not None
    disk.group._writer.cancel()
    async with asyncio.timeout(1):
        assert await answer == 10
    assert await disk.group.write(2) == 20
    await disk.group.close()


def test_the_end_of_the_event_loop_leaves_nobody_waiting() -> None:
    async def main() -> None:
        disk = Disk()
        disk.turn.clear()
        abandoned.append(asyncio.create_task(disk.group.write(1)))
        await asyncio.sleep(0.01)

    abandoned: list[asyncio.Task[Any]] = []
    asyncio.run(main())
    assert abandoned[0].cancelled()


def test_event_loops_in_several_threads_leave_nobody_waiting() -> None:
    async def answered_later(numbers: Sequence[int]) -> list[Any]:
        await asyncio.sleep(0)
        return [asyncio.ensure_future(asyncio.sleep(0, number)) for number in numbers]

    async def main() -> None:
        group: GroupCommit[int] = GroupCommit(answered_later, "The disk", patience=5)
        for _ in range(50):
            answers = [group.enqueue(number) for number in range(100)]
            async with asyncio.timeout(5):
                assert await asyncio.gather(*answers) == list(range(100))

    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for over in [threads.submit(asyncio.run, main()) for _ in range(4)]:
                over.result()
    finally:
        sys.setswitchinterval(usual)


# ── On a real file ───────────────────────────────────────────────────────────────────────────────────────


def settings_for(folder: Path) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(folder / "skeino.db"))


def database_of(store: Any) -> SqliteDatabase:
    assert isinstance(store, SqliteMetadataStore)
    return store._database


def sizes_of_transactions(
    database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 0
) -> list[int]:
    """How many writes are in each from here on, as they come; each takes so much longer."""
    sizes: list[int] = []
    transact = database._transact

    def counting(writes: Any) -> Any:
        sizes.append(len(writes))
        time.sleep(seconds)  # in the writer's thread
        return transact(writes)

    monkeypatch.setattr(database, "_transact", counting)
    return sizes


async def test_both_halves_share_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        sizes = sizes_of_transactions(database_of(persistence.metadata_store), monkeypatch)
        graph = compiled(persistence.checkpointer)

        async def converse(number: int) -> None:
            run_id = await started(persistence.metadata_store, f"t{number}")
            await graph.ainvoke({"words": ["hello"]}, {"configurable": {"thread_id": f"t{number}"}})
            assert await persistence.metadata_store.finish_run(ending(run_id))

        await asyncio.gather(*(converse(number) for number in range(50)))
        assert len(sizes) < sum(sizes) / 5  # many to one transaction
        assert len(await persistence.metadata_store.search_runs(status="success", limit=1000)) == 50
        for number in range(50):
            config: Any = {"configurable": {"thread_id": f"t{number}"}}
            assert (await graph.aget_state(config)).values == {"words": ["hello", "echo hello"]}


async def test_a_graph_alone_commits_once_for_each_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        # Each takes a while: on a disk in memory the graph would be slower than a commit.
        sizes = sizes_of_transactions(database_of(persistence.metadata_store), monkeypatch, seconds=0.02)
        config: Any = {"configurable": {"thread_id": "thread"}}
        graph = compiled(persistence.checkpointer)
        await graph.ainvoke({"words": ["hello"]}, config)
        assert len(sizes) == len([checkpoint async for checkpoint in graph.aget_state_history(config)]) == 3, sizes
        assert sum(sizes) == 5, "pending writes go with the checkpoint that follows"


async def test_a_work_that_fails_is_undone_and_its_neighbours_are_committed(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        database = database_of(persistence.metadata_store)
        await database.write(lambda connection: connection.execute("CREATE TABLE t (a INTEGER UNIQUE)").close())

        def insert(*values: int) -> Any:
            def work(connection: sqlite3.Connection) -> int:
                for value in values:
                    connection.execute("INSERT INTO t VALUES (?)", (value,))
                return len(values)

            return work

        def raises(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT INTO t VALUES (99)")
            raise LookupError("its own affair")

        works = [insert(1, 2), insert(3, 1), raises, insert(4)]
        answers = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
        assert (answers[0], answers[3]) == (2, 1)
        assert isinstance(answers[1], StoreError)
        assert "SQLITE_CONSTRAINT" in str(answers[1])
        assert isinstance(answers[2], LookupError)
        assert [row[0] for row in await database.read("SELECT a FROM t ORDER BY a")] == [1, 2, 4]


async def test_a_transaction_that_cannot_be_committed_fails_all_that_shared_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        store = persistence.metadata_store
        database = database_of(store)
        deferred = "INSERT INTO b VALUES (1)"
        await database.write(lambda connection: connection.execute("CREATE TABLE a (i INTEGER PRIMARY KEY)").close())
        await database.write(
            lambda connection: connection.execute(
                "CREATE TABLE b (i INTEGER REFERENCES a (i) DEFERRABLE INITIALLY DEFERRED)"
            ).close()
        )
        answers = await asyncio.gather(
            database.write(lambda connection: connection.execute(deferred).close()),
            started(store, "t1"),
            return_exceptions=True,
        )
        assert [type(answer) for answer in answers] == [StoreError, StoreError]
        assert await store.get_thread("t1") is None
        assert await started(store, "t2")


async def test_what_was_queued_when_it_closes_is_written(tmp_path: Path) -> None:
    async with open_persistence(settings_for(tmp_path)) as persistence:
        tasks = [asyncio.create_task(started(persistence.metadata_store, f"t{number}")) for number in range(100)]
        await asyncio.sleep(0)
    ids = await asyncio.gather(*tasks)
    async with open_persistence(settings_for(tmp_path)) as persistence:
        found = await persistence.metadata_store.search_runs(limit=1000)
    assert {run["run_id"] for run in found} == set(ids)


async def test_a_write_that_waits_too_long_is_told_so_and_is_done_all_the_same() -> None:
    disk = Disk(patience=0.1)
    disk.turn.clear()
    first = [asyncio.create_task(disk.group.write(number)) for number in (1, 2)]
    await asyncio.sleep(0.06)
    late = asyncio.create_task(disk.group.write(3))
    for write in first:
        with pytest.raises(StoreUnavailableError, match="The disk did not answer in time") as caught:
            await write
        assert caught.value.maybe_done
    assert not late.done()  # its own time is not over
    disk.turn.set()
    assert await late == 30
    assert disk.batches == [[1, 2], [3]]
    disk.turn.clear()
    with pytest.raises(StoreUnavailableError):
        await disk.group.write(4)
    disk.turn.set()
    await disk.group.close()
    assert disk.batches[-1] == [4]
    assert not disk.group._deadlines


async def test_an_answer_may_come_later_than_its_batch() -> None:
    later: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    failing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answers: list[Any] = [1, later, failing, later]

    async def write_batch(numbers: Sequence[int]) -> list[Any]:
        return [answers[number] for number in numbers]

    group: GroupCommit[int] = GroupCommit(write_batch, "The disk", patience=0.2)
    first, second, third, fourth = (group.enqueue(number) for number in range(4))
    assert await first == 1
    fourth.cancel()
    later.set_result(2)
    failing.set_exception(StoreError("no"))
    assert await second == 2
    with pytest.raises(StoreError, match="no"):
        await third
    answers[1] = asyncio.get_running_loop().create_future()
    with pytest.raises(StoreUnavailableError, match="in time"):
        await group.write(1)
    answers[1].set_result(5)
    await group.close()
