"""What group commit in a task does beyond the rest: answers that come before their batch, or after it; halves."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from skeino.errors import StoreError, StoreUnavailableError
from skeino.persistence.group_commit import TaskCommit
from tests.contract.disks import TaskDisk


async def test_what_is_committed_before_the_rest_of_its_batch_is_answered_before() -> None:
    goes_on = asyncio.Event()

    async def in_two_parts(numbers: Sequence[int]) -> list[Any]:
        group.answer(1, ValueError("bad") if fails else 20)
        await goes_on.wait()
        if fails:
            raise OSError
        return [number * 10 for number in numbers]

    group: TaskCommit[int] = TaskCommit(in_two_parts, "The disk")
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

    group: TaskCommit[int] = TaskCommit(in_two_parts, "The disk")
    first, second = group.enqueue(1), group.enqueue(2)
    assert await asyncio.wait_for(first, 5) == 10
    assert not second.done()
    goes_on.set()
    assert await second == 20
    await group.close()


async def test_halves_take_turns_where_there_are_many() -> None:
    disk = TaskDisk(halves=6)

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


async def test_when_the_writer_is_cancelled_what_waits_is_written() -> None:
    disk = TaskDisk(max_batch=1)
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
    disk = TaskDisk()
    answer = disk.group.enqueue(1)
    assert disk.group._writer is not None
    disk.group._writer.cancel()
    async with asyncio.timeout(1):
        assert await answer == 10
    assert await disk.group.write(2) == 20
    await disk.group.close()


def test_the_end_of_the_event_loop_leaves_nobody_waiting() -> None:
    async def main() -> None:
        disk = TaskDisk()
        disk.turn.clear()
        abandoned.append(disk.group.enqueue(1))
        while not disk.batches:
            await asyncio.sleep(0.001)

    abandoned: list[asyncio.Future[int]] = []
    asyncio.run(main())
    assert abandoned[0].cancelled()


def test_event_loops_in_several_threads_leave_nobody_waiting() -> None:
    async def answered_later(numbers: Sequence[int]) -> list[Any]:
        await asyncio.sleep(0)
        return [asyncio.ensure_future(asyncio.sleep(0, number)) for number in numbers]

    async def main() -> None:
        group: TaskCommit[int] = TaskCommit(answered_later, "The disk", patience=5)
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


async def test_an_answer_may_come_later_than_its_batch() -> None:
    later: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    failing: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answers: list[Any] = [1, later, failing, later]

    async def write_batch(numbers: Sequence[int]) -> list[Any]:
        return [answers[number] for number in numbers]

    group: TaskCommit[int] = TaskCommit(write_batch, "The disk", patience=0.2)
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
