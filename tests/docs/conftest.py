"""What the pages take for granted: a folder of one's own, no settings from outside, and a graph's builder."""

import operator
import os
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.graph import END, START, StateGraph

from skeino.persistence import registry


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SKEINO_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _schemes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_checkpointers", dict(registry._checkpointers))
    monkeypatch.setattr(registry, "_metadata_stores", dict(registry._metadata_stores))


class State(TypedDict):
    messages: Annotated[list[Any], operator.add]


@pytest.fixture
def builder() -> StateGraph[State, None, State, State]:
    """The reader's own graph: it answers each message."""
    builder = StateGraph(State)
    builder.add_node("answer", lambda state: {"messages": [f"You said {state['messages'][-1]}"]})
    builder.add_edge(START, "answer")
    builder.add_edge("answer", END)
    return builder
