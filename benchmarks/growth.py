"""What becomes of the rate when more is asked for at once, and when checkpoints are larger."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable
from typing import Any

from benchmarks import runs, savers
from benchmarks.page import rate, times
from benchmarks.servers import Place
from benchmarks.throughput import Effort, measured, number_of_turns

AT_ONCE = (1, 8, 64, 512)
SIZES = {"1 kB": 1_000, "10 kB": 10_000, "100 kB": 100_000, "1 MB": 1_000_000}
PUT_AT_ONCE = (8,)


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done."""
    at_once = [number for number in AT_ONCE if number <= effort.at_most]
    turns = number_of_turns(2, at_once=at_once, effort=effort)
    turns += number_of_turns(2 * len(SIZES), at_once=PUT_AT_ONCE, effort=effort)

    def after_turn() -> None:
        progress(1 / turns)

    async with runs.skeinos(place) as ours, runs.PLAIN[place.scheme](place) as plain:
        variants = {"skeino": ours, "by hand": plain[runs.BEST[place.scheme]]}
        of_runs = await measured(variants, at_once=at_once, effort=effort, after_turn=after_turn)
    async with savers.savers(place) as found:
        sizes = {
            (size, way): savers.aput(incompressible(length))(saver)
            for size, length in SIZES.items()
            for way, saver in found.items()
        }
        of_puts = await measured(sizes, at_once=PUT_AT_ONCE, effort=effort, after_turn=after_turn)
    return {
        "database": place.version,
        "runs": of_runs,
        "aput": {size: {way: of_puts[size, way]["8"] for way in found} for size in SIZES},
    }


def incompressible(length: int) -> str:
    """Text that no database can compress to nothing."""
    return base64.b64encode(random.Random(length).randbytes(length)).decode()[:length]


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown: two tables."""
    numbers = list(next(iter(schemes.values()))["runs"]["skeino"])
    lines = [
        f"| runs/s | way | {' | '.join(f'{number} at once' for number in numbers)} |",
        "|---|---|" + "---|" * len(numbers),
    ]
    for scheme, result in schemes.items():
        ours, theirs = result["runs"]["skeino"], result["runs"]["by hand"]
        name = runs.WAYS[scheme, runs.BEST[scheme]]
        lines += [
            f"| `{scheme}` | skeino | {' | '.join(rate(ours[number]) for number in numbers)} |",
            f"| `{scheme}` | {name} | {' | '.join(rate(theirs[number]) for number in numbers)} |",
            f"| | skeino does | {' | '.join(times(ours[number], theirs[number]) for number in numbers)} |",
        ]
    lines += [
        "",
        f"| aput/s, {PUT_AT_ONCE[0]} at once | saver | {' | '.join(SIZES)} |",
        "|---|---|" + "---|" * len(SIZES),
    ]
    for scheme, result in schemes.items():
        of_ours = [result["aput"][size]["skeino"] for size in SIZES]
        of_stock = [result["aput"][size]["stock"] for size in SIZES]
        lines += [
            f"| `{scheme}` | skeino | {' | '.join(map(rate, of_ours))} |",
            f"| `{scheme}` | {savers.STOCK[scheme]} | {' | '.join(map(rate, of_stock))} |",
            f"| | skeino does | {' | '.join(map(times, of_ours, of_stock))} |",
        ]
    return "\n".join(lines)
