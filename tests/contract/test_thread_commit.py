"""What group commit in a thread does beyond the rest: no task, no turn too many, and no write without an answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from skeino.errors import StoreUnavailableError
from skeino.persistence.cancellation import to_its_end
from skeino.persistence.group_commit import ThreadCommit
from tests.contract.disks import ThreadDisk


@pytest.fixture
def disk() -> Iterator[ThreadDisk]:
    disk = ThreadDisk()
    yield disk
    disk.end()


async def test_it_makes_no_task(disk: ThreadDisk) -> None:
    before = asyncio.all_tasks()
    disk.turn.clear()
    answer = disk.group.enqueue(1)
    while not disk.batches:
        await asyncio.sleep(0.001)
    assert asyncio.all_tasks() == before
    disk.turn.set()
    assert await answer == 10


async def test_what_its_thread_has_written_is_answered_in_the_turn_that_it_wakes(disk: ThreadDisk) -> None:
    loop = asyncio.get_running_loop()
    disk.turn.clear()
    answer = disk.group.enqueue(1)
    while not disk.batches:
        await asyncio.sleep(0.001)
    order: list[str] = []
    answer.add_done_callback(lambda _: order.append("answer"))
    disk.turn.set()
    asked = threading.Event()
    disk.thread.ask(asked.set, lambda *_: loop.call_soon(order.append, "a turn later"))
    assert asked.wait(5)
    time.sleep(0.01)  # noqa: ASYNC251 (both wake the event loop for the same turn)
    async with asyncio.timeout(5):
        while len(order) < 2:
            await asyncio.sleep(0)
    assert order == ["answer", "a turn later"]


async def test_what_was_not_done_comes_first_in_the_next_batch(disk: ThreadDisk) -> None:
    disk.again = 2
    assert await asyncio.gather(*(disk.group.write(number) for number in (1, 2, 3, 4))) == [10, 20, 30, 40]
    assert disk.batches == [[1, 2, 3, 4], [3, 4]]


async def test_a_thread_that_cannot_be_started_fails_the_write_and_the_next_one_tries_again(
    disk: ThreadDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        await disk.group.write(1)
    assert disk.group.is_idle
    monkeypatch.setattr(threading.Thread, "start", start)
    assert await disk.group.write(2) == 20
    assert disk.batches == [[2]], "what has failed is not written later"
    await disk.group.close()


async def test_an_exception_that_no_future_takes_leaves_nobody_waiting(disk: ThreadDisk) -> None:
    def write_batch(numbers: Sequence[int]) -> list[Any]:
        return [StopIteration() if number < 0 else number for number in numbers]

    group: ThreadCommit[int] = ThreadCommit(disk.thread, write_batch, "The disk")
    async with asyncio.timeout(5):
        answers = await asyncio.gather(*(group.write(number) for number in (-1, 2)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [RuntimeError, int]
        assert await group.write(3) == 3
        await group.close()


async def test_answers_that_are_too_few_do_not_stop_the_writer(disk: ThreadDisk) -> None:
    def write_batch(numbers: Sequence[int]) -> list[Any]:
        return [] if numbers == [1] else [number * 10 for number in numbers]

    group: ThreadCommit[int] = ThreadCommit(disk.thread, write_batch, "The disk", patience=0.2)
    errors: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context["exception"]))
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailableError, match="in time"):
            await group.write(1)
        assert await group.write(2) == 20
        await group.close()
    assert [type(error) for error in errors] == [ValueError]


def test_when_the_process_ends_all_that_wait_are_cancelled_and_clean_up(disk: ThreadDisk) -> None:
    async def writer(number: int) -> None:
        try:
            await disk.group.write(number)
        finally:
            await asyncio.sleep(0)
            cleaned.append(number)

    async def main() -> None:
        disk.failure = SystemExit(3)
        tasks = [asyncio.create_task(writer(number)) for number in (1, 2, 3)]
        await asyncio.wait(tasks)

    cleaned: list[int] = []
    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert sorted(cleaned) == [1, 2, 3]
    assert disk.group.is_idle


def test_what_is_waited_for_to_its_end_is_so_at_the_end_of_the_event_loop(disk: ThreadDisk) -> None:
    async def main() -> None:
        disk.turn.clear()
        abandoned.append(asyncio.create_task(to_its_end(disk.group.enqueue(1))))
        while not disk.batches:
            await asyncio.sleep(0.001)
        asyncio.get_running_loop().call_later(0.05, disk.turn.set)

    abandoned: list[asyncio.Task[int]] = []
    asyncio.run(main())
    assert abandoned[0].cancelled()
    assert disk.group.is_idle


def test_the_thread_outlives_an_event_loop_that_has_closed_before_it_was_done(disk: ThreadDisk) -> None:
    async def main() -> None:
        disk.turn.clear()
        abandoned.append(disk.group.enqueue(1))
        while not disk.batches:
            await asyncio.sleep(0.001)

    abandoned: list[asyncio.Future[int]] = []
    asyncio.run(main())
    disk.turn.set()

    async def after() -> int:
        return await disk.thread.run(lambda: 2)

    assert asyncio.run(asyncio.wait_for(after(), 5)) == 2
