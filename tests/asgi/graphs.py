"""Small real graphs."""

from __future__ import annotations

import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt


class Words(TypedDict):
    words: Annotated[list[str], operator.add]


def _echo(state: Words) -> Words:
    last = state["words"][-1]
    if last == "fail":
        raise RuntimeError("the node failed, password=hunter2")
    if last == "pause":
        return {"words": [str(interrupt("go on?"))]}
    return {"words": [f"echo {last}"]}


def compiled(checkpointer: Any) -> Any:
    """One node that echoes, fails at "fail", and waits for a human at "pause"."""
    builder = StateGraph(Words)
    builder.add_node("echo", _echo)
    builder.add_edge(START, "echo")
    builder.add_edge("echo", END)
    return builder.compile(checkpointer=checkpointer)
