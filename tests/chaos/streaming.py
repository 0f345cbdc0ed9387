"""The application that clients leave: it streams what a graph says, to those who are still there.

`/starlette` by Starlette's response, `/cancel` by the same with `on_disconnect="cancel"`, `/bare` without a look at
whether anybody is there. Where state is kept stands in the environment.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import START, StateGraph
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from skeino import current_run
from skeino_asgi import RunMiddleware, RunTracker

WORDS: Final = 10
PAUSE: Final = 0.02


class Said(TypedDict):
    said: Annotated[list[str], operator.add]


async def _speak(state: Said) -> Said:
    write = get_stream_writer()
    for number in range(WORDS):
        write(f"word {number}\n")
        await asyncio.sleep(PAUSE)
    return {"said": ["all"]}


tracker = RunTracker()
graph: Any = StateGraph(Said).add_node("speak", _speak).add_edge(START, "speak")


async def _words() -> AsyncIterator[str]:
    run = current_run()
    assert run is not None
    compiled = graph.compile(checkpointer=tracker.checkpointer)
    async for word in compiled.astream({"said": ["go"]}, run.config, stream_mode="custom"):
        yield word


async def streamed(scope: Scope, receive: Receive, send: Send) -> None:
    await StreamingResponse(_words(), media_type="text/plain")(scope, receive, send)


async def bare(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    async for word in _words():
        await send({"type": "http.response.body", "body": word.encode(), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


HANDLERS: Final = {
    "/starlette": RunMiddleware(streamed, tracker=tracker),
    "/cancel": RunMiddleware(streamed, tracker=tracker, on_disconnect="cancel"),
    "/bare": RunMiddleware(bare, tracker=tracker),
}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await HANDLERS["/starlette"](scope, receive, send)
    else:
        await HANDLERS[scope["path"]](scope, receive, send)
