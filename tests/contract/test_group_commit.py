"""Writes that come together are committed together: each is answered, in order, once, and for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from skeino.errors import StoreError, StoreUnavailableError
from tests.contract.disks import Disk, TaskDisk, ThreadDisk, variable

Make = Callable[..., Disk]


@pytest.fixture(params=[TaskDisk, ThreadDisk], ids=["task", "thread"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[Disk] = []

    def making(**limits: Any) -> Disk:
        made.append(request.param(**limits))
        return made[-1]

    yield making
    for disk in made:
        disk.end()


async def test_a_write_that_comes_alone_goes_at_once_and_those_that_come_meanwhile_go_together(make: Make) -> None:
    disk = make()
    assert await disk.group.write(1) == 10
    disk.turn.clear()
    writes = [asyncio.create_task(disk.group.write(number)) for number in (2, 3, 4, 5)]
    await asyncio.sleep(0.01)
    late = [asyncio.create_task(disk.group.write(number)) for number in (6, 7)]
    await asyncio.sleep(0.01)
    disk.turn.set()
    assert await asyncio.gather(*writes, *late) == [20, 30, 40, 50, 60, 70]
    assert disk.batches == [[1], [2, 3, 4, 5], [6, 7]]


async def test_what_few_answers_lead_to_shares_the_next_batch(make: Make) -> None:
    disk = make()
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


async def test_it_is_idle_as_soon_as_all_are_answered_and_not_before(make: Make) -> None:
    disk = make()
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


async def test_a_bad_write_is_answered_with_its_own_error_and_its_neighbours_are_not(make: Make) -> None:
    disk = make()
    answers = await asyncio.gather(*(disk.group.write(number) for number in (1, -2, 3)), return_exceptions=True)
    assert answers[::2] == [10, 30]
    assert isinstance(answers[1], ValueError)
    assert len(disk.batches) == 1


async def test_a_batch_that_fails_fails_all_its_writers_and_the_next_one_goes_on(make: Make) -> None:
    disk = make()
    disk.failure = StoreError("the disk is broken")
    answers = await asyncio.gather(*(disk.group.write(number) for number in (1, 2)), return_exceptions=True)
    assert [str(answer) for answer in answers] == ["the disk is broken"] * 2
    assert answers[0] is not answers[1], "what one of them adds to it, the other would see"
    disk.failure = None
    assert await disk.group.write(3) == 30


async def test_a_cancelled_writer_loses_its_answer_alone(make: Make) -> None:
    disk = make()
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


async def test_a_batch_has_its_largest_size_and_the_queue_too(make: Make) -> None:
    disk = make(max_batch=2, max_waiting=3)
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


async def test_closing_waits_for_what_is_queued_and_takes_no_more(make: Make) -> None:
    disk = make(max_batch=1)
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


async def test_a_batch_inherits_no_callers_context(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = make()
    seen: list[str] = []
    take = disk.group._take

    def taking(size: int) -> list[int]:
        seen.append(variable.get())
        return take(size)

    monkeypatch.setattr(disk.group, "_take", taking)
    variable.set("mine")
    disk.turn.clear()
    first, second = disk.group.enqueue(1), asyncio.create_task(disk.group.write(2))
    await asyncio.sleep(0.01)
    disk.turn.set()
    assert [await first, await second] == [10, 20]
    assert await disk.group.write(3) == 30  # and the disk looks
    assert {*seen} == {"none"}


async def test_what_is_queued_is_written_though_nobody_waits_yet(make: Make) -> None:
    disk = make()
    answers = [disk.group.enqueue(number) for number in (1, -2, 3)]
    await asyncio.wait(answers)
    assert disk.batches == [[1, -2, 3]]
    assert [answers[0].result(), type(answers[1].exception()), answers[2].result()] == [10, ValueError, 30]


async def test_a_write_that_waits_too_long_is_told_so_and_is_done_all_the_same(make: Make) -> None:
    disk = make(patience=1.0)
    disk.turn.clear()
    first = [asyncio.create_task(disk.group.write(number)) for number in (1, 2)]
    await asyncio.sleep(0.6)
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
