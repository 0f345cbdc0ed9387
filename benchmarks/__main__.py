"""`python -m benchmarks`: measures, prints tables, and with `--write` puts them into docs/performance.md.

It brings up the servers that it needs, and takes half an hour; a topic by itself takes less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import Progress

from benchmarks import (
    disk,
    growth,
    histories,
    machine,
    memory,
    middleware,
    network,
    operations,
    page,
    runs,
    savers,
    served,
    sizes,
    tables,
)
from benchmarks.servers import SCHEMES, Place, data_folder, flush_in_microseconds, place_of
from benchmarks.throughput import Effort
from tests.servers.process import ServerUnavailableError


class Topic(Protocol):
    """What is measured on each database; a module."""

    async def measure(self, place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]: ...

    def table(self, schemes: dict[str, Any]) -> str: ...


DATABASES: dict[str, Topic] = {
    "runs": runs,
    "savers": savers,
    "operations": operations,
    "growth": growth,
    "tables": tables,
    "histories": histories,
    "sizes": sizes,
    "served": served,
    "network": network,
    "disk": disk,
    "memory": memory,
}
TOPICS = ("middleware", *DATABASES)
EVERYWHERE = ("memory", *SCHEMES)
PLACES = {"served": ("postgres",), "network": ("postgres",), "memory": EVERYWHERE}
"""Where a topic is measured, if that is not on each database."""

CONDITIONS = {"memory": memory.can_be_read, "disk": disk.can_be_made}
"""What a machine must have for a topic; without, it is left out."""

FULL = {
    "runs": Effort(7, 0.5),
    "savers": Effort(5, 0.8),
    "operations": Effort(5, 0.3),
    "growth": Effort(4, 0.4),
    "tables": Effort(5, 0.1),
    "histories": Effort(5, 0.1),
    "sizes": Effort(1, 2.0),
    "served": Effort(5, 0.8),
    "network": Effort(5, 0.6),
    "disk": Effort(4, 0.6),
    "memory": Effort(2, 0),
}
QUICK = Effort(2, 0.02, at_most=32, rows=1_000)


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    topics = (
        [arguments.topic]
        if arguments.topic
        else [topic for topic in TOPICS if topic not in CONDITIONS or CONDITIONS[topic]()]
    )
    if arguments.write and (arguments.quick or arguments.scheme):
        parser.error("--write is for figures of all schemes, and for none that were taken quickly")
    schemes = arguments.scheme or EVERYWHERE
    if arguments.topic and not set(schemes) & {*PLACES.get(arguments.topic, SCHEMES)}:
        parser.error(f"{arguments.topic} is measured on {', '.join(PLACES.get(arguments.topic, SCHEMES))}")
    try:
        results = asyncio.run(_measure(topics, schemes, arguments.data, arguments.quick))
    except ServerUnavailableError as exc:
        parser.exit(1, f"{exc}\n")
    texts = {topic: text_of(topic, result) for topic, result in results.items()}
    if arguments.json:
        print(json.dumps(results, indent=2))
    else:
        print("\n".join(texts.values()))
    if "runs" in results and (beaten := runs.beaten_limits(results["runs"]["schemes"])):
        print("The machine was busy: measure again. " + "; ".join(beaten) + ".", file=sys.stderr)
        if arguments.write:
            sys.exit("Nothing was written.")
    if arguments.write:
        page.write(results, texts)


def text_of(topic: str, result: dict[str, Any]) -> str:
    """A topic's table, and how it was measured, as Markdown."""
    if topic == "middleware":
        lines = [
            middleware.table(result["figures"]),
            "",
            f"Medians of {result['rounds']} interleaved rounds of {result['requests_per_round']} requests each, "
            f"{result['measured_at'][:10]}. {result['machine']}.",
        ]
    elif topic == "memory":
        lines = [
            memory.table(result["schemes"]),
            "",
            f"Medians of {result['rounds']} servers each, {result['measured_at'][:10]}. {result['machine']}.",
        ]
    else:
        databases = ", ".join(one["database"] for one in result["schemes"].values())
        rounds = f"{result['rounds']} interleaved rounds of {result['seconds']} s, {result['measured_at'][:10]}"
        how = {
            "sizes": f"Counted over {result['seconds']} s of each, {result['measured_at'][:10]}",
            "tables": f"Medians of {rounds}",
            "histories": f"Medians of {rounds}",
            "disk": f"Medians and quartiles of {rounds}, a process for each disk",
        }.get(topic, f"Medians and quartiles of {rounds}; p50 and p99 of all of them")
        lines = [
            DATABASES[topic].table(result["schemes"]),
            "",
            f"{how}. {databases}; the disk keeps 8 kB for good in "
            f"{result['flush_in_microseconds']:.0f} µs. {result['machine']}.",
        ]
    return "\n".join([*lines, ""])


async def _measure(topics: list[str], schemes: Sequence[str], data: Path | None, quick: bool) -> dict[str, Any]:
    results: dict[str, Any] = {}
    with Progress(console=Console(stderr=True), transient=True) as progress, data_folder(data) as folder:
        if "middleware" in topics:
            results["middleware"] = await _measure_middleware(progress, 2 if quick else 60, 5 if quick else 500)
        efforts = {topic: QUICK if quick else FULL[topic] for topic in DATABASES if topic in topics}
        if efforts:
            results |= await _measure_databases(progress, efforts, schemes, folder)
    return results


async def _measure_middleware(progress: Progress, rounds: int, times: int) -> dict[str, Any]:
    task = progress.add_task("middleware", total=rounds + 1)
    figures = await middleware.measure(rounds, times, partial(progress.advance, task))
    return {
        **_circumstances("middleware"),
        "unit": "microseconds per request",
        "rounds": rounds,
        "requests_per_round": times,
        "figures": figures,
    }


async def _measure_databases(
    progress: Progress, efforts: dict[str, Effort], schemes: Sequence[str], data: Path
) -> dict[str, Any]:
    places = {
        scheme: [topic for topic in efforts if scheme in PLACES.get(topic, SCHEMES)]
        for scheme in EVERYWHERE
        if scheme in schemes
    }
    tasks = {
        (scheme, topic): progress.add_task(f"{topic}, {scheme}", total=1)
        for scheme, topics in places.items()
        for topic in topics
    }
    flush = flush_in_microseconds(data)
    results: dict[str, Any] = {
        topic: {
            **_circumstances(topic),
            "unit": "per second",
            "rounds": effort.rounds,
            "seconds": effort.seconds,
            "flush_in_microseconds": flush,
            "schemes": {},
        }
        for topic, effort in efforts.items()
        if any(topic in topics for topics in places.values())
    }
    for scheme, topics in places.items():
        if not topics:
            continue
        with place_of(scheme, data) as place:  # one server at a time
            for topic in topics:
                advance = partial(progress.advance, tasks[scheme, topic])
                results[topic]["schemes"][scheme] = await DATABASES[topic].measure(place, efforts[topic], advance)
    return results


def _circumstances(topic: str) -> dict[str, Any]:
    return {"measured_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine.described(topic)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("topic", nargs="?", choices=TOPICS, help="what to measure (default: all)")
    parser.add_argument(
        "--scheme", action="append", choices=EVERYWHERE, help="only on this; may be given several times"
    )
    parser.add_argument("--data", type=Path, help="a folder on the disk to measure on (default: the current one)")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: to see that it works")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    parser.add_argument("--write", action="store_true", help="put the result into docs/performance.md and .json")
    return parser


if __name__ == "__main__":
    main()
