"""A house to move: threads, runs and states of every kind, and a way to look at all of it."""

from __future__ import annotations

import operator
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from types import ModuleType
from typing import Annotated, Any, TypedDict, cast

import psycopg
from langgraph.channels import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command
from psycopg import sql
from pymongo import MongoClient

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, Persistence, RunRow, open_persistence
from skeino.persistence.inventory import StateInventory, StoredWrite
from skeino.persistence.rows import RunError
from skeino.runs import new_id
from skeino.testing import at
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, asking, config_of, fanned_out, nested, plain, said

THREADS = ("plain", "nested", "fanned out", "asking", "values", "forked", "delta", "gaps", "untracked")
"""Threads that have state; the rows' order is another."""

_CLASSES = """
from dataclasses import dataclass
from enum import Enum
from pydantic import BaseModel

class Colour(Enum):
    RED = "red"

@dataclass
class Door:
    width: float
    colour: Colour

class Room(BaseModel):
    name: str
    doors: list[Door]
"""

_APPLICATION = ModuleType("application_of_the_house")
sys.modules[_APPLICATION.__name__] = _APPLICATION  # pydantic and dataclasses look there
exec(_CLASSES, _APPLICATION.__dict__)
del sys.modules[_APPLICATION.__name__]


@contextmanager
def application() -> Iterator[ModuleType]:
    """A module with classes that can be imported inside of the block only."""
    sys.modules[_APPLICATION.__name__] = _APPLICATION
    try:
        yield _APPLICATION
    finally:
        sys.modules.pop(_APPLICATION.__name__, None)


class Values(TypedDict, total=False):
    room: Any
    blob: bytes
    number: int
    nothing: None
    many: Annotated[list[Any], operator.add]


def _appended(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(item for write in writes for item in write)]


class Deltas(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(_appended, list, snapshot_frequency=3)]


def of_values(saver: Saver) -> Any:
    """State that is of the application's own classes."""

    def furnish(state: Values) -> Values:
        door = _APPLICATION.Door(0.9, _APPLICATION.Colour.RED)
        return {
            "room": _APPLICATION.Room(name="hall", doors=[door]),
            "blob": b"\x00\xff",
            "number": state.get("number", 0) + 1,
            "nothing": None,
            "many": [door, {"at": at(1), 3: (1, 2)}, {1.5, "x"}, "text \N{SNOWMAN}"],
        }

    graph = StateGraph(Values)
    graph.add_node("furnish", furnish)
    graph.add_edge(START, "furnish")
    graph.add_edge("furnish", END)
    return graph.compile(checkpointer=saver)


def of_deltas(saver: Saver) -> Any:
    """State that is stored as differences, with a snapshot now and then."""

    def one(state: Deltas) -> Deltas:
        return {"items": [f"one of {len(state['items'])}"]}

    def two(state: Deltas) -> Deltas:
        return {"items": [f"two of {len(state['items'])}"]}

    graph = StateGraph(Deltas)
    graph.add_node("one", one)
    graph.add_node("two", two)
    graph.add_edge(START, "one")
    graph.add_edge(START, "two")
    return graph.compile(checkpointer=saver)


def graph_of(thread_id: str, saver: Saver) -> Any:
    graphs: dict[str, Callable[[Saver], Any]] = {
        "nested": nested,
        "fanned out": fanned_out,
        "asking": lambda saver: asking(saver, questions=2),
        "values": of_values,
        "delta": of_deltas,
    }
    return graphs.get(thread_id, plain)(saver)


def input_of(thread_id: str, number: int) -> Any:
    if thread_id == "values":
        return {"number": number}
    if thread_id == "delta":
        return {"items": [f"input {number}"]}
    return said(f"input {number}")


async def furnish(settings: SkeinoSettings) -> None:
    """Fill an empty database: run graphs as an application does, and let one run be active at the end."""
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        store, saver = tracker.metadata_store, tracker.checkpointer
        await store.create_thread("alone", owner="bob", metadata={"a.b": {"$c": 1.5}}, config={"tags": ["x"]})
        await store.create_thread("plain", owner=None, metadata={"topic": 1}, ttl={"strategy": "delete", "ttl": 7.5})
        for thread_id in THREADS[:-2]:
            for number in range(1 if thread_id == "asking" else 4 if thread_id == "delta" else 2):
                async with tracker.run(thread_id=thread_id, metadata={"number": number}) as run:
                    await graph_of(thread_id, saver).ainvoke(input_of(thread_id, number), run.config)
        await _fork(graph_of("forked", saver))
        for thread_id in THREADS[-2:]:
            await graph_of(thread_id, saver).ainvoke(said("nobody sees it"), config_of(thread_id))
        await _gaps(saver)
        await _runs_of_all_statuses(store)


async def _fork(graph: Any) -> None:
    """Two branches whose channels have the same number of changes, and other values."""
    history = [one async for one in graph.aget_state_history(config_of("forked"))]
    for branch in ("left", "right"):
        config = await graph.aupdate_state(history[2].config, said(branch), as_node="answer")
        await graph.ainvoke(said(f"after {branch}"), config)


async def _gaps(saver: Saver) -> None:
    """Pending writes whose places are not 0, 1, 2: special channels have places of their own."""
    found = await saver.aget_tuple(config_of("gaps"))
    assert found is not None
    writes = [("messages", ["a"]), ("__resume__", ["yes"]), ("messages", ["c"]), ("__error__", "no"), ("other", b"e")]
    await saver.aput_writes(found.config, writes, "2-task", "~2")
    await saver.aput_writes(found.config, writes[1:3], "1-task", "~3")


async def _runs_of_all_statuses(store: MetadataStoreProtocol) -> None:
    def row(number: int, **changes: Any) -> RunRow:
        run: dict[str, Any] = {
            "run_id": new_id(),
            "thread_id": "alone",
            "owner": "bob",
            "worker_id": "web1-4711-x",
            "status": "success",
            "metadata": {"n": number},
            "kwargs": {"path": "/"},
            "error": None,
            "http_status": 200,
            "created_at": at(7),  # one time for all: pages must not depend on it
            "started_at": at(8),
            "finished_at": at(9 + number),
            "checkpoint_count": number,
            "first_checkpoint_id": None,
            "last_checkpoint_id": None,
            "paused": False,
            "late_outcome": None,
        }
        return cast("RunRow", {**run, **changes})

    failed = RunError(code="exception", type="ValueError", message="no")
    await store.restore_runs(
        [
            *(row(number, thread_id=None) for number in range(450)),
            row(1, status="error", error=failed, http_status=500),
            row(2, status="timeout", error=failed),
            row(3, status="interrupted", paused=True, late_outcome={"status": "success", "finished_at": "9"}),
            row(4, status="pending", finished_at=None),
            row(5, status="running", finished_at=None),
        ]
    )


def dump(settings: SkeinoSettings) -> object:
    """All that the database holds, past skeino and LangGraph."""
    uri = settings.checkpointer_uri or ""
    if settings.checkpointer_scheme == "sqlite":
        with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as file:
            return [*file.iterdump()]
    if settings.checkpointer_scheme == "mongodb":
        with MongoClient[dict[str, Any]](uri) as client:
            database = client.get_default_database()
            names = sorted(database.list_collection_names())
            return {name: ([*database[name].find()], database[name].index_information()) for name in names}
    with psycopg.connect(uri) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        return {
            table: sorted(connection.execute(sql.SQL("SELECT t::text FROM {} t").format(sql.Identifier(table))))
            for (table,) in tables
        }


async def all_rows(settings: SkeinoSettings) -> list[Any]:
    """All threads and runs."""
    async with open_persistence(settings) as persistence:
        store = persistence.metadata_store
        threads = await store.search_threads(limit=1000, sort_by="thread_id")
        return [*threads, *await store.search_runs(limit=1000, sort_by="run_id")]


async def all_state(persistence: Persistence, threads: Sequence[str] = THREADS) -> dict[str, Any]:
    """Every checkpoint with everything in it, but for its versions; read as an application does."""
    found: dict[str, Any] = {}
    for thread_id in threads:
        async for one in persistence.checkpointer.alist(config_of(thread_id)):
            place = (thread_id, one.config["configurable"]["checkpoint_ns"], one.checkpoint["id"])
            kept: dict[str, Any] = {
                name: value
                for name, value in one.checkpoint.items()
                if name not in ("channel_versions", "versions_seen")
            }
            # PostgreSQL keeps a value once for each version, and so shows a snapshot on later checkpoints, too.
            kept["channel_values"] = {
                name: value
                for name, value in kept["channel_values"].items()
                if type(value).__name__ != "_DeltaSnapshot"
            }
            parent = one.parent_config and one.parent_config["configurable"]["checkpoint_id"]
            channels = sorted(one.checkpoint["channel_versions"])
            found[str(place)] = (kept, channels, one.metadata, parent, one.pending_writes)
    return found


async def all_writes(persistence: Persistence) -> dict[str, list[StoredWrite]]:
    """Every pending write, byte for byte."""
    saver = persistence.checkpointer
    assert isinstance(saver, StateInventory)
    return {
        f"{thread_id} {namespace} {checkpoint_id}": sorted(await saver.awrites(thread_id, namespace, checkpoint_id))
        for thread_id in THREADS
        for namespace, checkpoint_id in await saver.ainventory(thread_id)
    }


async def history_of(thread_id: str, persistence: Persistence) -> list[Any]:
    """The snapshots of a thread, subgraphs' included, newest first."""
    graph = graph_of(thread_id, persistence.checkpointer)
    return [snapshot async for snapshot in graph.aget_state_history(config_of(thread_id))]


async def go_on(thread_id: str, persistence: Persistence) -> Any:
    """One more call, and what the thread's state is then."""
    graph = graph_of(thread_id, persistence.checkpointer)
    asked = Command(resume="yes") if thread_id == "asking" else input_of(thread_id, 9)
    config = config_of(thread_id)
    if thread_id == "asking":
        interrupts = (await graph.aget_state(config)).interrupts
        asked = Command(resume={one.id: f"yes {number}" for number, one in enumerate(sorted(interrupts, key=_id))})
    result = await graph.ainvoke(asked, config)
    values = [snapshot.values async for snapshot in graph.aget_state_history(config)]
    return result, values


def _id(interrupt: Any) -> str:
    return str(interrupt.id)
