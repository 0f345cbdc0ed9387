"""How much so many at once get done per second, and how long each step takes: variants in turn, round after round."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from benchmarks.processor import Spent, spent

Key = TypeVar("Key", bound=Hashable)

Waits = dict[str, list[float]]
"""By step, the seconds that each of its calls took."""


@dataclass(frozen=True)
class Turn:
    """What a variant has done in its turn."""

    per_second: float
    waits: Waits


Variant = Callable[[int, float], Awaitable[Turn]]
"""Works with so many at once, for so many seconds."""


@dataclass(frozen=True)
class Effort:
    """How long all of it is measured."""

    rounds: int
    seconds: float
    """Of each turn."""
    at_most: int = 512
    """At once."""
    rows: int = 1_000_000
    """In the largest table."""


def stepping(steps: Mapping[str, Callable[[int], Awaitable[object]]]) -> Variant:
    """The variant whose operation is these steps, one after the other, each given the operation's number."""
    numbers = itertools.count(1)

    async def turn(at_once: int, seconds: float) -> Turn:
        waits: Waits = {name: [] for name in steps}
        done = 0
        started = time.perf_counter()
        deadline = started + seconds

        async def worker() -> None:
            nonlocal done
            before = time.perf_counter()
            while True:
                number = next(numbers)
                for name, step in steps.items():
                    await step(number)
                    after = time.perf_counter()
                    waits[name].append(after - before)
                    before = after
                done += 1
                if before > deadline:
                    return

        async with asyncio.TaskGroup() as workers:
            for _ in range(at_once):
                workers.create_task(worker())
        return Turn(done / (time.perf_counter() - started), waits)

    return turn


def batching(write: Callable[[Sequence[int]], None]) -> Variant:
    """The variant that blocks a thread and writes batches of as many operations as others have at once."""
    numbers = itertools.count(1)

    def batches(size: int, seconds: float) -> Turn:
        done = 0
        started = time.perf_counter()
        while done == 0 or time.perf_counter() - started < seconds:
            write(list(itertools.islice(numbers, size)))
            done += size
        return Turn(done / (time.perf_counter() - started), {})

    async def turn(at_once: int, seconds: float) -> Turn:
        return await asyncio.to_thread(batches, at_once, seconds)

    return turn


async def measured(
    variants: Mapping[Key, Variant], *, at_once: Sequence[int], effort: Effort, after_turn: Callable[[], object]
) -> dict[Key, dict[str, Any]]:
    """For each variant and each number at once, what `_figure` says; the first round warms up and does not count."""
    turns: dict[tuple[Key, int], list[Turn]] = {(key, number): [] for key in variants for number in at_once}
    work: dict[tuple[Key, int], list[Spent]] = {key: [] for key in turns}
    gc.freeze()
    try:
        for round_ in range(effort.rounds + 1):
            for number in at_once:
                for key, variant in variants.items():
                    gc.collect()
                    before, started = spent(), time.perf_counter()
                    turn = await variant(number, effort.seconds)
                    seconds, after = time.perf_counter() - started, spent()
                    if round_ > 0:
                        turns[key, number].append(turn)
                        if before is not None and after is not None:
                            work[key, number].append(after.since(before).by(turn.per_second * seconds))
                    after_turn()
    finally:
        gc.unfreeze()
    return {
        key: {str(number): _figure(turns[key, number]) | _work(work[key, number]) for number in at_once}
        for key in variants
    }


def number_of_turns(variants: int, *, at_once: Sequence[int], effort: Effort) -> int:
    """How often `measured` calls `after_turn`."""
    return variants * len(at_once) * (effort.rounds + 1)


def _figure(turns: Sequence[Turn]) -> dict[str, Any]:
    """Operations per second, median and quartiles of the rounds; of each step p50 and p99 in ms, over all rounds."""
    low, median, high = statistics.quantiles([turn.per_second for turn in turns], n=4, method="inclusive")
    figure: dict[str, Any] = {"median": round(median, 1), "low": round(low, 1), "high": round(high, 1)}
    steps = {name: [wait for turn in turns for wait in turn.waits[name]] for name in turns[0].waits}
    if steps:
        figure["milliseconds"] = {
            name: {"p50": _percentile(waits, 50), "p99": _percentile(waits, 99)} for name, waits in steps.items()
        }
    return figure


def _work(turns: Sequence[Spent]) -> dict[str, Any]:
    """Microseconds of the processor that an operation takes, in this process and elsewhere: the medians."""
    if not turns:
        return {}
    client, others = (
        max(0, round(1e6 * statistics.median(seconds)))  # the others' are counted in hundredths of a second
        for seconds in ([turn.client for turn in turns], [turn.others for turn in turns])
    )
    return {"processor": {"client": client, "others": others}}


def _percentile(waits: list[float], percent: int) -> float:
    return round(1000 * statistics.quantiles(waits, n=100, method="inclusive")[percent - 1], 3)
