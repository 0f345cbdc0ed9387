"""Starlette, natively: state and runs in a SQLite file, which a restart does not touch.

Purpose   A tracker shared by the lifespan, where the graph is compiled once, and the middleware.
Install   pip install '.[sqlite]' uvicorn                    (in a checkout of the repository)
Run       uvicorn examples.starlette_sqlite:app              (makes skeino.db in the current folder)

Expect

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Hello'
    {"messages":["Hello","You said Hello"]}

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Again'
    {"messages":["Hello","You said Hello","Again","You said Again"]}
    $ curl http://127.0.0.1:8000/threads/t1/runs
    {"runs":[{"run_id":"…","status":"success","checkpoint_count":3},{"run_id":"…","status":"success","checkpoint_count":3}]}
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    return {"messages": [f"You said {state['messages'][-1]}"]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)

tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db"))


@asynccontextmanager
async def compile_graph(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    yield {"graph": builder.compile(checkpointer=tracker.checkpointer)}


async def add_message(request: Request) -> Response:
    message = (await request.body()).decode()
    result = await request.state.graph.ainvoke({"messages": [message]}, request.state.run.config)
    return JSONResponse({"messages": result["messages"]})


async def list_runs(request: Request) -> Response:
    """The runs that wrote to the thread, newest first; the request itself is a run that wrote nothing."""
    runs = await request.state.metadata_store.search_runs(thread_id=request.path_params["thread_id"])
    shown = ("run_id", "status", "checkpoint_count")
    return JSONResponse({"runs": [{name: run[name] for name in shown} for run in runs if run["checkpoint_count"]]})


app = Starlette(
    routes=[
        Route("/threads/{thread_id}/messages", add_message, methods=["POST"]),
        Route("/threads/{thread_id}/runs", list_runs),
    ],
    lifespan=combine_lifespans(tracker.lifespan, compile_graph),  # the tracker first: the graph needs what it opens
)
app.add_middleware(RunMiddleware, tracker=tracker, thread_path="/threads/{thread_id}")
