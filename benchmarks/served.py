"""Requests per second behind a real server, uvicorn, over the network stack: what runs and state cost an application.

Each way is a server of its own, up all the time, and the load comes from this process. A turn is over when the ends of
its runs are written.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.page import milliseconds, processor, rate, times
from benchmarks.servers import Place
from benchmarks.throughput import Effort, Turn, Variant, measured, number_of_turns
from benchmarks.uvicorns import Served, Way, served
from skeino import SkeinoSettings

AT_ONCE = (32,)

ENDPOINTS = {
    "ok": {
        "skeino on PostgreSQL": "`RunMiddleware`, scheme `postgres`",
        "untracked": "no middleware",
        "skeino in memory": "`RunMiddleware`, scheme `memory`",
        "skeino on SQLite": "`RunMiddleware`, scheme `sqlite`",
        "by hand": "by hand in PostgreSQL, start and finish, a connection for each",
        "five operations": "by hand, five operations, a connection for each",
    },
    "graph": {
        "skeino on PostgreSQL": "`RunMiddleware` and its saver, scheme `postgres`",
        "untracked": "no middleware, `InMemorySaver`",
        "skeino in memory": "`RunMiddleware` and its saver, scheme `memory`",
        "skeino on SQLite": "`RunMiddleware` and its saver, scheme `sqlite`",
        "by hand": "start and finish by hand, `AsyncPostgresSaver` on a pool of ten",
        "five operations": "five operations by hand, `AsyncPostgresSaver` on a pool of ten",
    },
}
"""Each endpoint, and how a way does it."""

TITLES = {"ok": 'an endpoint that answers "ok"', "graph": "an endpoint that runs the graph of three nodes"}


async def ways(place: Place, folder: Path) -> dict[str, Way]:
    """What is served; `place` is PostgreSQL, and `folder` the SQLite file's."""
    sqlite = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(folder / "served.db"))
    return {
        "skeino on PostgreSQL": Way("skeino", place.settings(place.empty())),
        "untracked": Way("untracked"),
        "skeino in memory": Way("skeino", SkeinoSettings(checkpointer_scheme="memory")),
        "skeino on SQLite": Way("skeino", sqlite),
        **{way: Way(way, place.settings(await place.with_tables())) for way in ("by hand", "five operations")},
    }


def requesting(server: Served, endpoint: str) -> Variant:
    async def turn(at_once: int, seconds: float) -> Turn:
        return await asyncio.to_thread(load.turn, server, f"/{endpoint}", at_once, seconds)

    return turn


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures; `progress` is told which part of it is done."""
    step = 1 / sum(number_of_turns(len(found), at_once=AT_ONCE, effort=effort) for found in ENDPOINTS.values())
    figures = {}
    with tempfile.TemporaryDirectory(prefix="served-", dir=place.folder) as folder:
        with served(await ways(place, Path(folder))) as servers:
            for endpoint, found in ENDPOINTS.items():
                variants = {way: requesting(servers[way], endpoint) for way in found}
                figures[endpoint] = await measured(
                    variants, at_once=AT_ONCE, effort=effort, after_turn=lambda: progress(step)
                )
    return {"database": place.version, **figures}


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown: two tables."""
    (result,) = schemes.values()
    tables = []
    for endpoint, found in ENDPOINTS.items():
        ours = result[endpoint]["skeino on PostgreSQL"]["32"]
        lines = [
            f"| {TITLES[endpoint]} | requests/s, 32 at once | skeino on PostgreSQL does | p50 / p99 | processor |",
            "|---|---|---|---|---|",
        ]
        for way, how in found.items():
            figure = result[endpoint][way]["32"]
            lines.append(
                f"| {how} | {rate(figure)} | {times(ours, figure)} | {milliseconds(figure, 'request')} | "
                f"{processor(figure)} |"
            )
        tables.append("\n".join(lines))
    return "\n\n".join(tables)
