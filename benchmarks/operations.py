"""Each operation of a saver one at a time: skeino's savers beside LangGraph's own, on threads with blobs and writes."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, StateGraph
from psycopg_pool import AsyncConnectionPool

from benchmarks.graphs import State, word
from benchmarks.page import rate, times
from benchmarks.savers import savers
from benchmarks.servers import Place
from benchmarks.throughput import Effort

Saver = BaseCheckpointSaver[Any]
Step = Callable[[], Awaitable[object]]
Making = Callable[[Saver], Awaitable[tuple[Step | None, Step]]]
"""What is done before each call, unmeasured, and the call."""

LONG, HISTORY = 100, 50
PAUSE = 0.002
"""Seconds, the longest, between what prepares a call and the call. MongoDB answers writes about once a millisecond:
what begins right after such an answer waits the longer, the sooner it begins. Calls that need no preparation follow at
once, as those of one caller do."""


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done."""
    figures: dict[str, Any] = {}
    async with savers(place) as found:
        for saver in found.values():
            await _fill(saver)
            if isinstance(saver, AsyncPostgresSaver):
                await _analysed(saver)
        for name, making in OPERATIONS.items():
            ways = {way: await making(saver) for way, saver in found.items()}
            rounds = [await _round(ways, effort.seconds) for _ in range(effort.rounds + 1)][1:]  # the first warms up
            figures[name] = {way: _figure([one[way] for one in rounds]) for way in ways}
            progress(1 / len(OPERATIONS))
    return {"database": place.version, "operations": figures}


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = ["| one at a time | scheme | skeino | LangGraph's own | skeino does |", "|---|---|---|---|---|"]
    for name in OPERATIONS:
        for scheme, result in schemes.items():
            ours, theirs = result["operations"][name]["skeino"], result["operations"][name]["stock"]
            lines.append(f"| {name} | `{scheme}` | {rate(ours)} | {rate(theirs)} | {times(ours, theirs)} |")
    return "\n".join(lines)


async def _round(ways: Mapping[str, tuple[Step | None, Step]], seconds: float) -> dict[str, float]:
    """Seconds that a call takes, the median: call by call in turn, so that what else the machine does hits all.

    In a new order each time: what has gone before leaves caches and timers behind.
    """
    waits: dict[str, list[float]] = {way: [] for way in ways}
    gc.collect()
    while min(map(len, waits.values())) == 0 or sum(map(sum, waits.values())) < seconds * len(ways):
        for way, (before, call) in random.sample([*ways.items()], len(ways)):
            if before is not None:
                await before()
                await asyncio.sleep(random.uniform(0, PAUSE))
            started = time.perf_counter()
            await call()
            waits[way].append(time.perf_counter() - started)
    return {way: statistics.median(found) for way, found in waits.items()}


def _figure(seconds: list[float]) -> dict[str, float]:
    """Calls per second: the median and the quartiles of the rounds."""
    low, median, high = statistics.quantiles([1 / one for one in seconds], n=4, method="inclusive")
    return {"median": round(median, 1), "low": round(low, 1), "high": round(high, 1)}


# ── Operations ───────────────────────────────────────────────────────────────────────────────────────────


async def _the_latest(saver: Saver) -> tuple[None, Step]:
    return None, lambda: saver.aget_tuple(_at(f"of {LONG}"))


async def _by_id(saver: Saver) -> tuple[None, Step]:
    found = [one async for one in saver.alist(_at(f"of {LONG}"), limit=LONG // 2)]
    return None, lambda: saver.aget_tuple(found[-1].config)


async def _listed(saver: Saver) -> tuple[None, Step]:
    return None, lambda: _all(saver.alist(_at(f"of {LONG}"), limit=10))


async def _listed_by_metadata(saver: Saver) -> tuple[None, Step]:
    return None, lambda: _all(saver.alist(_at(f"of {LONG}"), filter={"source": "update"}, limit=10))


async def _put(saver: Saver) -> tuple[None, Step]:
    place = _at("put")

    async def call() -> None:
        await saver.aput(place, _checkpoint(1), _metadata(0), {"messages": "1"})

    return None, call


async def _put_writes(saver: Saver) -> tuple[None, Step]:
    place = _at("put writes", "1ef4f797-8335-6428-8001-8a1503f9b875")

    async def call() -> None:
        await saver.aput_writes(place, [("messages", "word"), ("branch:to:b", None)], str(uuid6()), "~__pregel_pull, b")

    return None, call


async def _graph(saver: Saver) -> tuple[None, Step]:
    builder = StateGraph(State)
    for name in "abc":
        builder.add_node(name, word)
    for before, after in ((START, "a"), ("a", "b"), ("b", "c"), ("c", END)):
        builder.add_edge(before, after)
    graph = builder.compile(checkpointer=saver)
    return None, lambda: graph.ainvoke({"words": ["first"]}, {"configurable": {"thread_id": str(uuid6())}})


async def _history(saver: Saver) -> tuple[None, Step]:
    builder = StateGraph(State)
    builder.add_node("a", word)
    builder.add_edge(START, "a")
    builder.add_edge("a", END)
    graph = builder.compile(checkpointer=saver)
    config: RunnableConfig = {"configurable": {"thread_id": f"history of {HISTORY}"}}
    while len([one async for one in saver.alist(config, limit=HISTORY)]) < HISTORY:
        await graph.ainvoke({"words": ["word"]}, config)
    return None, lambda: _all(graph.aget_state_history(config, limit=HISTORY))


async def _deleted(saver: Saver) -> tuple[Step, Step]:
    threads: list[str] = []

    async def before() -> None:
        threads.append(str(uuid6()))
        await _fill_thread(saver, threads[-1], 10)

    return before, lambda: saver.adelete_thread(threads[-1])


OPERATIONS: dict[str, Making] = {
    "`aget_tuple`, the latest": _the_latest,
    "`aget_tuple`, by id": _by_id,
    f"`alist`, 10 of {LONG}": _listed,
    f"`alist`, 10 of {LONG} by metadata": _listed_by_metadata,
    "`aput`, 1 kB": _put,
    "`aput_writes`": _put_writes,
    "`ainvoke`, 3 nodes": _graph,
    f"`aget_state_history`, {HISTORY}": _history,
    "`adelete_thread`": _deleted,
}


# ── Threads ──────────────────────────────────────────────────────────────────────────────────────────────


async def _fill(saver: Saver) -> None:
    await _fill_thread(saver, f"of {LONG}", LONG)
    for number in range(20):  # neighbours, that no thread has a table to itself
        await _fill_thread(saver, f"other {number}", 10)


async def _fill_thread(saver: Saver, thread_id: str, length: int) -> None:
    """Checkpoints of about 1 kB, each the child of the one before, with the writes of two tasks."""
    config = _at(thread_id)
    for number in range(1, length + 1):
        config = await saver.aput(config, _checkpoint(number), _metadata(number), {"messages": str(number)})
        for task in "ab":
            await saver.aput_writes(config, [("messages", ["word"]), ("branch:to:b", None)], f"{task}{number}", task)


async def _analysed(saver: AsyncPostgresSaver) -> None:
    """As autovacuum does within a minute; plans change with it, and figures would do so on the way."""
    assert isinstance(saver.conn, AsyncConnectionPool)
    async with saver.conn.connection() as connection:
        await connection.execute("ANALYZE")


def _checkpoint(number: int) -> Checkpoint:
    return {
        **empty_checkpoint(),
        "v": 4,  # as LangGraph writes them
        "id": str(uuid6()),
        "channel_values": {"messages": [{"role": "user", "content": "x" * 1000}], "step": number},
        "channel_versions": {"messages": str(number), "step": str(number)},
    }


def _metadata(step: int) -> CheckpointMetadata:
    return {"source": "loop" if step % 2 else "update", "step": step, "parents": {}}


def _at(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    place = {"thread_id": thread_id, "checkpoint_ns": ""}
    return {"configurable": place if checkpoint_id is None else {**place, "checkpoint_id": checkpoint_id}}


async def _all(found: AsyncIterator[Any]) -> None:
    async for _ in found:
        pass
