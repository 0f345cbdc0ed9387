"""Interleaved measurement: each variant has its turn in every round, so what the machine does meanwhile hits all."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

Work = Callable[[int], Awaitable[None]]
"""Does the thing so many times."""


@dataclass(frozen=True)
class Figure:
    """Microseconds for one operation, over all rounds."""

    median: float
    low: float
    """A quarter of the rounds were faster."""
    high: float
    """A quarter of the rounds were slower."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def interleaved(
    variants: Mapping[str, Work], *, rounds: int, times: int, after_round: Callable[[], object]
) -> dict[str, Figure]:
    """Each variant does its work `times` times per round, in turn; the first round warms up and does not count.

    Garbage is collected between the turns and not during them, as it would be in whoever's turn it happened to be.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    gc.freeze()
    try:
        for number in range(rounds + 1):
            for name, work in variants.items():
                gc.collect()
                gc.disable()
                started = time.perf_counter()
                await work(times)
                elapsed = time.perf_counter() - started
                gc.enable()
                if number > 0:
                    seconds[name].append(elapsed)
            after_round()
    finally:
        gc.enable()
        gc.unfreeze()
    return {name: _figure([1e6 * one / times for one in measured]) for name, measured in seconds.items()}


def _figure(microseconds: list[float]) -> Figure:
    low, median, high = statistics.quantiles(microseconds, n=4)
    return Figure(round(median, 2), round(low, 2), round(high, 2))
