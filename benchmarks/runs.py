"""Runs tracked per second, start and finish: skeino's metadata store, the usual ways by hand, and the limit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from benchmarks import plain_mongodb, plain_postgres, plain_sqlite, rows
from benchmarks.page import milliseconds, processor, rate, times
from benchmarks.servers import Place
from benchmarks.throughput import Effort, Variant, measured, number_of_turns, stepping
from skeino.persistence import MetadataStoreProtocol, open_persistence

AT_ONCE = (1, 32)
_BEATEN = 1.1  # less is within the spread

PLAIN: dict[str, Callable[[Place], AbstractAsyncContextManager[dict[str, Variant]]]] = {
    "sqlite": plain_sqlite.variants,
    "postgres": plain_postgres.variants,
    "mongodb": plain_mongodb.variants,
}

LIMITS = {
    "sqlite": "the limit: `sqlite3`, a transaction for so many",
    "postgres": "`pgbench`, two statements, prepared",
    "mongodb": "the limit: `bulk_write` of so many, no transaction",
}
WAYS = {
    ("sqlite", "five operations"): "five operations, on one `aiosqlite` connection",
    ("postgres", "five operations"): "five operations, a connection for each",
    ("sqlite", "a connection for each"): "start and finish, a connection for each",
    ("postgres", "a connection for each"): "start and finish, a connection for each",
    ("mongodb", "a connection for each"): "start and finish, a connection for each",
    ("sqlite", "one connection"): "one `aiosqlite` connection and a lock",
    ("postgres", "a pool"): "`psycopg_pool`, ten connections",
    ("mongodb", "a pool"): "one `AsyncMongoClient`, transactions",
}
BEST = {"sqlite": "one connection", "postgres": "a pool", "mongodb": "a pool"}
"""Of the ways by hand."""


@asynccontextmanager
async def skeinos(place: Place) -> AsyncIterator[Variant]:
    """Runs tracked in the metadata store that skeino opens."""
    async with open_persistence(place.settings(place.empty())) as persistence:
        yield tracked(persistence.metadata_store)


def tracked(store: MetadataStoreProtocol, *, first: int = 0) -> Variant:
    """Runs tracked in this store, their numbers from the first on."""

    async def start(number: int) -> None:
        await store.start_run(
            rows.run_id(first + number),
            worker_id=rows.WORKER,
            thread_id=rows.thread_id(first + number),
            kwargs=rows.KWARGS,
        )

    async def finish(number: int) -> None:
        assert await store.finish_run(rows.finish(first + number))

    return stepping({"start": start, "finish": finish})


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done."""
    async with skeinos(place) as ours, PLAIN[place.scheme](place) as plain:
        variants = {"skeino": ours, **plain}
        step = 1 / number_of_turns(len(variants), at_once=AT_ONCE, effort=effort)
        figures = await measured(variants, at_once=AT_ONCE, effort=effort, after_turn=lambda: progress(step))
    return {"database": place.version, "ways": figures}


def beaten_limits(schemes: dict[str, Any]) -> list[str]:
    """The ways that were faster than what is called the limit: then other work was, in truth, what was measured.

    Alone, where there is nothing to write together: `pgbench` does not batch.
    """
    return [
        f"{scheme}, 1 at once: {way} has {figures['1']['median']:,.0f}/s, "
        f"the limit {result['ways']['the limit']['1']['median']:,.0f}/s"
        for scheme, result in schemes.items()
        if "the limit" in result["ways"]
        for way, figures in result["ways"].items()
        if figures["1"]["median"] > _BEATEN * result["ways"]["the limit"]["1"]["median"]
    ]


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| scheme | way | runs/s, 1 at once | skeino does | runs/s, 32 at once | skeino does "
        "| start, p50 / p99 | finish | processor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for scheme, result in schemes.items():
        ours = result["ways"]["skeino"]
        for way, figures in result["ways"].items():
            one, many = figures["1"], figures["32"]
            name = LIMITS[scheme] if way == "the limit" else WAYS.get((scheme, way), way)
            lines.append(
                f"| `{scheme}` | {name} | {rate(one)} | {times(ours['1'], one)} | {rate(many)} | "
                f"{times(ours['32'], many)} | {milliseconds(many, 'start')} | {milliseconds(many, 'finish')} | "
                f"{processor(many)} |"
            )
    return "\n".join(lines)
