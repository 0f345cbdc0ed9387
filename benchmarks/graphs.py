"""The graph that is run: three nodes in a row, that do next to nothing."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph


class State(TypedDict):
    words: Annotated[list[str], operator.add]


def three_nodes(saver: BaseCheckpointSaver[Any]) -> CompiledStateGraph[State, None, State, State]:
    """With this saver, one read and nine writes."""
    builder = StateGraph(State)
    for name in "abc":
        builder.add_node(name, word)
    for before, after in ((START, "a"), ("a", "b"), ("b", "c"), ("c", END)):
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver)


async def word(state: State) -> State:
    return {"words": ["word"]}
