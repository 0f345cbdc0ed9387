"""How long it takes to read a thread, and to go on with it, when it is longer: skeino's savers beside the stock ones.

The graph's state stays small, however many checkpoints there are: what counts is their number.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, copy_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.graph import END, START, StateGraph

from benchmarks import savers
from benchmarks.servers import Place
from benchmarks.tables import milliseconds, power_of_ten
from benchmarks.throughput import Effort, measured, number_of_turns, stepping

LENGTHS = (10, 100, 1_000, 10_000)
FIRST = 10
_PUT_AT_ONCE = 16
OPERATIONS = ("aget_state", "aget_state_history, the first ten", "ainvoke")
"""The one that makes threads longer comes last."""


class State(TypedDict):
    number: int


async def count(state: State) -> State:
    return {"number": state["number"] + 1}


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done, half of it for the histories."""
    lengths = [length for length in LENGTHS if length <= effort.rows // 100]
    async with savers.savers(place) as found:
        graphs = {way: _graph(saver) for way, saver in found.items()}
        figures: dict[tuple[str, int, str], dict[str, Any]] = {}
        for length in lengths:
            for graph in graphs.values():
                for number in range(_threads(length)):
                    await _lengthen(graph, _config(length, number), length)
                progress(0.5 * length / (len(graphs) * sum(lengths)))
        turns = number_of_turns(len(OPERATIONS) * len(lengths) * len(graphs), at_once=(1,), effort=effort)
        for operation in OPERATIONS:
            variants = {
                (length, way): stepping({operation: _operation(graph, operation, length)})
                for length in lengths
                for way, graph in graphs.items()
            }
            in_turn = await measured(variants, at_once=(1,), effort=effort, after_turn=lambda: progress(0.5 / turns))
            figures |= {(operation, *key): figure["1"] for key, figure in in_turn.items()}
    return {
        "database": place.version,
        "operations": {
            operation: {way: {str(length): figures[operation, length, way] for length in lengths} for way in found}
            for operation in OPERATIONS
        },
    }


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lengths = [*next(iter(next(iter(schemes.values()))["operations"].values()))["skeino"]]
    lines = [
        f"| ms, with so many checkpoints | saver | {' | '.join(map(power_of_ten, lengths))} |",
        "|---|---|" + "---|" * len(lengths),
    ]
    for scheme, result in schemes.items():
        for operation, ways in result["operations"].items():
            for way, figures in ways.items():
                name = savers.STOCK[scheme] if way == "stock" else way
                cells = [f"{milliseconds(figures[length]):.2f}" for length in lengths]
                lines.append(f"| `{scheme}`, {operation} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _graph(saver: savers.Saver) -> Any:
    builder = StateGraph(State)
    builder.add_node("count", count)
    builder.add_edge(START, "count")
    builder.add_edge("count", END)
    return builder.compile(checkpointer=saver)


def _config(length: int, number: int = 0) -> RunnableConfig:
    """Of one of the threads that have this length."""
    return {"configurable": {"thread_id": f"history-{length}-{number % _threads(length)}", "checkpoint_ns": ""}}


def _threads(length: int) -> int:
    """Short threads are many, lest those on which graphs run grow long."""
    return max(1, 500 // length)


async def _lengthen(graph: Any, config: RunnableConfig, length: int) -> None:
    """Give a new thread so many checkpoints: one of the graph's, and copies of it, each with a number of its own."""
    first = await graph.aupdate_state(config, {"number": 0}, as_node="count")
    saver = graph.checkpointer
    checkpoint, metadata = (await saver.aget_tuple(first))[1:3]

    def copies() -> Iterator[tuple[RunnableConfig, Checkpoint, str]]:
        parent, version = checkpoint["id"], checkpoint["channel_versions"]["number"]
        for number in range(1, length):
            version = saver.get_next_version(version, None)
            copy: Checkpoint = copy_checkpoint(checkpoint)
            copy["id"] = str(uuid6())
            copy["channel_values"]["number"] = number
            copy["channel_versions"]["number"] = version
            yield {"configurable": {**config["configurable"], "checkpoint_id": parent}}, copy, version
            parent = copy["id"]

    todo = copies()

    async def put() -> None:
        for parent, copy, version in todo:
            await saver.aput(parent, copy, {**metadata, "step": metadata["step"] + 1}, {"number": version})

    async with asyncio.TaskGroup() as group:
        for _ in range(_PUT_AT_ONCE):
            group.create_task(put())


def _operation(graph: Any, operation: str, length: int) -> Callable[[int], Awaitable[object]]:
    async def aget_state(number: int) -> None:
        assert (await graph.aget_state(_config(length, number))).values

    async def ainvoke(number: int) -> None:
        await graph.ainvoke({"number": number}, _config(length, number))

    async def first_ten(number: int) -> None:
        history = graph.aget_state_history(_config(length, number), limit=FIRST)
        found = [snapshot async for snapshot in history]
        assert len(found) == FIRST

    return dict(zip(OPERATIONS, (aget_state, first_ten, ainvoke), strict=True))[operation]
