"""Small graphs: plain, with a subgraph, fanned out by `Send`, and pausing for a human."""

import asyncio
import operator
from typing import Annotated, Any, TypedDict

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send, interrupt

from skeino import current_run

Saver = BaseCheckpointSaver[Any]


class State(TypedDict, total=False):
    messages: Annotated[list[str], operator.add]


def said(*messages: str) -> State:
    return {"messages": list(messages)}


def config_of(thread_id: str, **configurable: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread_id, **configurable}}


async def answer(state: State) -> State:
    """Say which run sees it."""
    await asyncio.sleep(0)
    run = current_run()
    return said(f"answer to {state['messages'][-1]} in {run.run_id if run else None}")


def answer_in_a_thread(state: State) -> State:
    run = current_run()
    return said(f"sync answer in {run.run_id if run else None}")


def plain(saver: Saver) -> Any:
    """One asynchronous node."""
    graph = StateGraph(State)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=saver)


def synchronous(saver: Saver) -> Any:
    """One node that is a plain function."""
    graph = StateGraph(State)
    graph.add_node("answer", answer_in_a_thread)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=saver)


def nested(saver: Saver, *, pausing: bool = False) -> Any:
    """A subgraph with checkpoints of its own, then a synchronous node."""
    inner = StateGraph(State)
    inner.add_node("ask" if pausing else "answer", _ask if pausing else answer)
    inner.add_edge(START, "ask" if pausing else "answer")
    graph = StateGraph(State)
    graph.add_node("inner", inner.compile(checkpointer=True))
    graph.add_node("after", answer_in_a_thread)
    graph.add_edge(START, "inner")
    graph.add_edge("inner", "after")
    graph.add_edge("after", END)
    return graph.compile(checkpointer=saver)


def fanned_out(saver: Saver) -> Any:
    """Five nodes at once, half of them plain functions."""
    graph = StateGraph(State)
    graph.add_node("answer", answer)
    graph.add_node("sync", answer_in_a_thread)
    graph.add_conditional_edges(
        START, lambda state: [Send(("answer", "sync")[n % 2], said(f"part {n}")) for n in range(5)], ["answer", "sync"]
    )
    return graph.compile(checkpointer=saver)


def asking(saver: Saver, *, questions: int = 1) -> Any:
    """Nodes that each pause for a human, all at once, and one that comes afterwards."""
    graph = StateGraph(State)
    for number in range(questions):
        graph.add_node(f"ask{number}", _ask)
        graph.add_edge(START, f"ask{number}")
    graph.add_node("after", answer)
    graph.add_edge([f"ask{number}" for number in range(questions)], "after")
    graph.add_edge("after", END)
    return graph.compile(checkpointer=saver)


GRAPHS = {"plain": plain, "synchronous": synchronous, "nested": nested, "fanned out": fanned_out}


async def checkpoints(saver: Saver, thread_id: str) -> list[CheckpointTuple]:
    """All of a thread's checkpoints, subgraphs' included, newest first."""
    return [one async for one in saver.alist(config_of(thread_id))]


def stamps(found: list[CheckpointTuple]) -> list[Any]:
    """The run id of each."""
    return [one.metadata.get("run_id") for one in found]


def _ask(state: State) -> State:
    return said(f"told {interrupt('what now?')}")
