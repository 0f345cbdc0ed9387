"""Operations are counted and timed as they say."""

import asyncio
from collections.abc import Sequence

from benchmarks.processor import Spent
from benchmarks.throughput import Effort, Turn, batching, measured, number_of_turns, stepping


async def test_so_many_are_at_work_and_each_step_is_timed() -> None:
    working = most = 0
    seen: list[tuple[str, int]] = []

    async def start(number: int) -> None:
        nonlocal working, most
        working += 1
        most = max(most, working)
        seen.append(("start", number))
        await asyncio.sleep(0.02)

    async def finish(number: int) -> None:
        nonlocal working
        working -= 1
        seen.append(("finish", number))

    turn = await stepping({"start": start, "finish": finish})(3, 0.1)

    assert most == 3
    assert sorted(number for step, number in seen if step == "start") == list(range(1, len(seen) // 2 + 1))
    assert {number for step, number in seen if step == "finish"} == {number for _, number in seen}
    assert len(turn.waits["start"]) == len(turn.waits["finish"]) == len(seen) // 2
    assert min(turn.waits["start"]) >= 0.019 > max(turn.waits["finish"])
    assert 3 / 0.1 < turn.per_second <= 3 / 0.02


async def test_a_batch_has_as_many_operations_as_others_have_at_once() -> None:
    batches: list[Sequence[int]] = []

    turn = await batching(batches.append)(4, 0.01)

    assert {len(batch) for batch in batches} == {4}
    assert [number for batch in batches for number in batch] == list(range(1, 4 * len(batches) + 1))
    assert turn.per_second > 0


async def test_the_first_round_does_not_count() -> None:
    turns: list[int] = []

    async def slow_at_first(at_once: int, seconds: float) -> Turn:
        turns.append(at_once)
        return Turn(1.0 if len(turns) <= 2 else 100.0 * at_once, {"step": [0.001 * len(turns)]})

    effort = Effort(rounds=2, seconds=0)
    advanced: list[None] = []
    figures = await measured(
        {"way": slow_at_first}, at_once=(1, 32), effort=effort, after_turn=lambda: advanced.append(None)
    )

    assert turns == [1, 32] * 3
    assert len(advanced) == number_of_turns(1, at_once=(1, 32), effort=effort)
    assert figures["way"]["1"]["median"] == 100
    work = figures["way"]["32"].pop("processor", {})  # where it can be known
    assert min(work.values(), default=0) >= 0
    assert figures["way"]["32"] == {
        "median": 3200,
        "low": 3200,
        "high": 3200,
        "milliseconds": {"step": {"p50": 5.0, "p99": 5.98}},
    }


def test_the_processor_s_time_is_that_of_an_operation() -> None:
    assert Spent(3.0, 5.0).since(Spent(1.0, 1.0)).by(4) == Spent(0.5, 1.0)
