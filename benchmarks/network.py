"""Graphs and runs where the database is another machine: a round trip to it takes longer, and it carries as much."""

from __future__ import annotations

import statistics
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from psycopg import AsyncConnection
from psycopg.conninfo import conninfo_to_dict

from benchmarks import plain_postgres, runs, savers
from benchmarks.distance import distance
from benchmarks.page import milliseconds, rate, times
from benchmarks.servers import Place
from benchmarks.throughput import Effort, measured, number_of_turns
from tests.servers.postgres import with_parameters

ROUND_TRIP = 0.5
"""Milliseconds that the network adds."""

AT_ONCE = (1, 32)
WAYS = {
    "runs": {"skeino": "skeino", "by hand": runs.WAYS["postgres", "a pool"]},
    "ainvoke": {"skeino": "skeino", "stock": savers.STOCK["postgres"]},
}
"""What is done, and how."""


@asynccontextmanager
async def far(place: Place) -> AsyncIterator[Place]:
    """The same place from afar."""
    dsn = place.empty()
    of_server = conninfo_to_dict(dsn)
    host, port = str(of_server["host"]), int(str(of_server["port"]))
    with distance(host, port, ROUND_TRIP / 2) as tried:
        longer = await round_trip(with_parameters(dsn, host="127.0.0.1", port=tried)) - await round_trip(dsn)
    # What carrying costs, waking up above all, is a part of the way: the rest is waited for.
    with distance(host, port, max(0.0, ROUND_TRIP - longer / 2)) as entrance:

        def empty() -> str:
            return with_parameters(place.empty(), host="127.0.0.1", port=entrance)

        yield replace(place, empty=empty, pgbench=None)


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures; `progress` is told which part of it is done."""
    step = 1 / sum(number_of_turns(len(found), at_once=AT_ONCE, effort=effort) for found in WAYS.values())
    figures = {}
    async with far(place) as away:
        async with runs.skeinos(away) as ours, plain_postgres.variants(away) as plain:
            of_runs = {"skeino": ours, "by hand": plain["a pool"]}
            figures["runs"] = await measured(of_runs, at_once=AT_ONCE, effort=effort, after_turn=lambda: progress(step))
        async with savers.savers(away) as found:
            of_graphs = {way: savers.ainvoke(saver) for way, saver in found.items()}
            figures["ainvoke"] = await measured(
                of_graphs, at_once=AT_ONCE, effort=effort, after_turn=lambda: progress(step)
            )
        there = [await round_trip(one.empty()) for one in (place, away)]
    return {"database": place.version, "round_trip": {"near": there[0], "far": there[1]}, **figures}


async def round_trip(dsn: str) -> float:
    """Milliseconds that the smallest statement takes, the median of many."""
    seconds = []
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        for _ in range(200):
            started = time.perf_counter()
            await connection.execute("SELECT 1")
            seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 2)


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    (result,) = schemes.values()
    trips = result["round_trip"]
    lines = [
        "| | way | 1 at once | skeino does | 32 at once | skeino does | p50 / p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for what, found in WAYS.items():
        ours = result[what]["skeino"]
        for way, name in found.items():
            one, many = result[what][way]["1"], result[what][way]["32"]
            step = "ainvoke" if what == "ainvoke" else "start"
            lines.append(
                f"| {what}/s | {name} | {rate(one)} | {times(ours['1'], one)} | {rate(many)} | "
                f"{times(ours['32'], many)} | {milliseconds(many, step)}{' (start)' if step == 'start' else ''} |"
            )
    lines += ["", f"`SELECT 1` takes {trips['near']} ms here, and {trips['far']} ms from there."]
    return "\n".join(lines)
