"""Run as a script, with LANGGRAPH_STRICT_MSGPACK=true: a graph's own types, through `with_allowlist()`.

python -m tests.savers.strict_msgpack SCHEME URI
"""

import asyncio
import dataclasses
import operator
import os
import sys
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

from skeino import SkeinoSettings
from skeino_asgi import RunTracker


@dataclasses.dataclass
class Note:
    text: str


class State(TypedDict):
    notes: Annotated[list[Note], operator.add]


async def main(scheme: str, uri: str) -> None:
    tracker = RunTracker(
        SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=uri or None, allow_ephemeral_metadata=True)
    )
    async with tracker.lifespan():
        graph = StateGraph(State)
        graph.add_node("write", lambda state: {"notes": [Note("answer")]})
        graph.add_edge(START, "write")
        graph.add_edge("write", END)
        compiled = graph.compile(checkpointer=tracker.checkpointer)
        async with tracker.run(thread_id="t") as run:
            config = run.config
            await compiled.ainvoke({"notes": [Note("one")]}, config)
            state = await compiled.ainvoke({"notes": [Note("two")]}, config)
        assert state["notes"] == [Note("one"), Note("answer"), Note("two"), Note("answer")], state
        found = [one async for one in tracker.checkpointer.alist(config)]
        assert [one.metadata.get("run_id") for one in found] == [run.run_id] * 6
        assert run.ledger.checkpoint_count == 6
        clone: Any = tracker.checkpointer.with_allowlist([(Note.__module__, "Note")])
        assert type(clone) is type(tracker.checkpointer)
        assert clone is not tracker.checkpointer
        latest: Any = await clone.aget_tuple(config)
        assert latest.checkpoint["channel_values"]["notes"] == state["notes"]
        refused = await tracker.checkpointer.aget_tuple(config)  # without the list the type is not restored
        assert refused is not None
        assert refused.checkpoint["channel_values"]["notes"] != state["notes"], "strict mode was not on"


if __name__ == "__main__":
    assert os.environ["LANGGRAPH_STRICT_MSGPACK"] == "true"
    asyncio.run(main(sys.argv[1], sys.argv[2]))
    print("done")
