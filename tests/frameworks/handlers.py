"""What the handlers of all frameworks do: each framework only reads the request and writes the answer.

Every application has the same routes: POST /chat, /threads/{thread_id}/chat, /sync, /fail, /teapot, /broken and,
where the framework has background tasks, /background; GET /stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from skeino import Run, current_run
from tests.asgi.graphs import compiled

WORDS = ("one", "two", "three")


async def chat(state: Any, word: str) -> dict[str, Any]:
    """One turn of a graph, and what the handler saw; `state` has the request's state as attributes."""
    run = state.run
    row = await state.metadata_store.get_run(run.run_id)
    result = await compiled(state.checkpointer).ainvoke({"words": [word]}, run.config)
    return {
        "words": result["words"],
        "row": None if row is None else row["status"],
        "run": run.run_id,
        "thread": run.thread_id,
        "current": current_run() is run,
    }


def turn(state: Any) -> dict[str, Any]:
    """One turn of a graph in a synchronous handler, which the framework calls in a worker thread."""
    words = compiled(state.checkpointer).invoke({"words": ["sync"]}, state.run.config)["words"]
    return {"words": words, **seen(state)}


def seen(state: Any) -> dict[str, Any]:
    """What a synchronous handler sees of its run."""
    return {"run": state.run.run_id, "current": current_run() is state.run}


def fail() -> None:
    raise RuntimeError("the handler failed")


def stream(state: Any) -> AsyncIterator[bytes]:
    """A line for each of several turns, written while the response is sent."""
    config = state.run.config  # here, not while streaming: the new thread's id goes into the headers

    async def lines() -> AsyncIterator[bytes]:
        graph = compiled(state.checkpointer)
        for word in WORDS:
            if word != WORDS[0]:
                await between_lines()
            async for update in graph.astream({"words": [word]}, config, stream_mode="updates"):
                assert current_run() is state.run
                yield f"{update['echo']['words'][0]}\n".encode()

    return lines()


async def between_lines() -> None:
    """A moment between two lines of a stream."""
    await asyncio.sleep(0)


async def afterwards(state: Any) -> None:
    """What a background task does: it writes to the graph."""
    await asyncio.sleep(0)
    run: Run = state.run
    assert current_run() == run
    await compiled(state.checkpointer).ainvoke({"words": ["afterwards"]}, run.config)
