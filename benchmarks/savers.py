"""Graphs run per second, and checkpoints put: skeino's savers, LangGraph's own, and the one in memory as the limit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any, Protocol

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, Checkpoint, CheckpointMetadata, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from pymongo.uri_parser import parse_uri

from benchmarks.graphs import three_nodes
from benchmarks.page import milliseconds, processor, rate, times
from benchmarks.plain_postgres import pool_of
from benchmarks.servers import Place
from benchmarks.throughput import Effort, Turn, Variant, measured, number_of_turns, stepping
from skeino.persistence import Persistence, open_persistence
from skeino.persistence.claims import ClaimingStore, ThreadClaims, delete_checkpoints_of
from skeino.runs import Run, current_run_var

Saver = BaseCheckpointSaver[Any]
Enter = Callable[[str], None]
"""Told of each thread before it is read or written to."""


class Making(Protocol):
    """Makes what is measured of a saver."""

    def __call__(self, saver: Saver, enter: Enter = ...) -> Variant: ...


def _nothing(thread_id: str) -> None: ...


OUTSIDE = "skeino, outside of runs"
THREADS = 1_000
"""That checkpoints are put into by themselves."""


AINVOKE_AT_ONCE = (1, 32)
PUT_AT_ONCE = (32,)
STOCK = {
    "sqlite": "`AsyncSqliteSaver`",
    "postgres": "`AsyncPostgresSaver` on a pool of ten",
    "mongodb": "`MongoDBSaver`",
}


def ainvoke(saver: Saver, enter: Enter = _nothing) -> Variant:
    """A graph of three nodes in a row, each time on a thread of its own."""
    graph = three_nodes(saver)

    async def step(number: int) -> None:
        thread_id = f"ainvoke-{number}"
        enter(thread_id)
        await graph.ainvoke({"words": ["first"]}, {"configurable": {"thread_id": thread_id}})

    return stepping({"ainvoke": step})


def aput(content: str) -> Making:
    """A checkpoint with one message of this content, on some of many threads."""

    def making(saver: Saver, enter: Enter = _nothing) -> Variant:
        metadata: CheckpointMetadata = {"source": "loop", "step": 0, "parents": {}}

        async def step(number: int) -> None:
            thread_id = f"aput-{len(content)}-{number % THREADS}"
            enter(thread_id)
            config: RunnableConfig = {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}
            checkpoint: Checkpoint = {
                **empty_checkpoint(),
                "id": str(uuid6()),
                "channel_values": {"messages": [{"role": "user", "content": content}]},
                "channel_versions": {"messages": str(number)},
            }
            await saver.aput(config, checkpoint, metadata, {"messages": str(number)})

        return stepping({"aput": step})

    return making


@asynccontextmanager
async def savers(place: Place) -> AsyncIterator[dict[str, Saver]]:
    """skeino's saver, outside of any run, and LangGraph's own, each on a database of its own."""
    async with both(place) as (ours, stock):
        yield {"skeino": ours.checkpointer, "stock": stock}


@asynccontextmanager
async def both(place: Place) -> AsyncIterator[tuple[Persistence, Saver]]:
    """skeino's two halves, and LangGraph's own saver, each on a database of its own."""
    async with AsyncExitStack() as stack:
        ours = await stack.enter_async_context(open_persistence(place.settings(place.empty())))
        yield ours, await _stock(place, stack)


def in_runs(ours: Persistence) -> Enter:
    """Lets what its caller does next be a run's, which claims the thread before it reads and writes with its fence."""
    store = ours.metadata_store
    assert isinstance(store, ClaimingStore)
    claims = ThreadClaims(store, partial(delete_checkpoints_of, ours.checkpointer), patience=30.0, limit=100)
    runs: dict[str, Run] = {}

    def enter(thread_id: str) -> None:
        run = runs.get(thread_id)
        if run is None:
            run = Run(thread_id)
            run.claims = claims
            if len(runs) < THREADS:
                runs[thread_id] = run
        current_run_var.set(run)

    return enter


async def _stock(place: Place, stack: AsyncExitStack) -> Saver:
    uri = await place.with_tables()
    if place.scheme == "sqlite":
        return await stack.enter_async_context(AsyncSqliteSaver.from_conn_string(uri))
    if place.scheme == "postgres":
        # As its documentation says: https://pypi.org/project/langgraph-checkpoint-postgres/
        pool = pool_of(uri, autocommit=True, prepare_threshold=0, row_factory=dict_row)
        return AsyncPostgresSaver(await stack.enter_async_context(pool))
    name = parse_uri(uri)["database"]
    return stack.enter_context(MongoDBSaver.from_conn_string(uri, db_name=str(name)))


def in_memory(making: Making) -> Variant:
    """On a saver in memory, a new one for each turn, lest what it keeps slows the others down."""

    async def turn(at_once: int, seconds: float) -> Turn:
        return await making(InMemorySaver())(at_once, seconds)

    return turn


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done."""
    operations: dict[str, tuple[Making, Sequence[int]]] = {
        "ainvoke": (ainvoke, AINVOKE_AT_ONCE),
        "aput": (aput("x" * 1000), PUT_AT_ONCE),
    }
    figures = {}
    async with both(place) as (ours, stock):
        turns = sum(number_of_turns(4, at_once=at_once, effort=effort) for _, at_once in operations.values())
        for name, (making, at_once) in operations.items():
            variants = {
                "skeino": making(ours.checkpointer, in_runs(ours)),
                "stock": making(stock),
                OUTSIDE: making(ours.checkpointer),
                "the limit": in_memory(making),
            }
            figures[name] = await measured(
                variants, at_once=at_once, effort=effort, after_turn=lambda: progress(1 / turns)
            )
    return {"database": place.version, **figures}


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lines = [
        "| scheme | saver | ainvoke/s, 1 at once | skeino does | ainvoke/s, 32 at once | skeino does | p50 / p99 "
        "| processor | aput/s, 32 at once | skeino does | p50 / p99 |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for scheme, result in schemes.items():
        ours, our_puts = result["ainvoke"]["skeino"], result["aput"]["skeino"]["32"]
        for way, figures in result["ainvoke"].items():
            one, many, puts = figures["1"], figures["32"], result["aput"][way]["32"]
            name = {"stock": STOCK[scheme], "the limit": "the limit: `InMemorySaver`"}.get(way, way)
            lines.append(
                f"| `{scheme}` | {name} | {rate(one)} | {times(ours['1'], one)} | {rate(many)} | "
                f"{times(ours['32'], many)} | {milliseconds(many, 'ainvoke')} | {processor(many)} | {rate(puts)} | "
                f"{times(our_puts, puts)} | {milliseconds(puts, 'aput')} |"
            )
    return "\n".join(lines)
