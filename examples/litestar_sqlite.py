"""Litestar, natively: state and runs in a SQLite file, which a restart does not touch.

Purpose   A tracker in `lifespan=[…]`, the graph compiled once after it, and the middleware in `middleware=[…]`.
Install   pip install '.[sqlite]' litestar uvicorn           (in a checkout of the repository)
Run       uvicorn examples.litestar_sqlite:app               (makes skeino.db in the current folder)

Expect

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Hello'
    {"thread":"t1","messages":["Hello","You said Hello"]}

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Again'
    {"thread":"t1","messages":["Hello","You said Hello","Again","You said Again"]}
    $ curl http://127.0.0.1:8000/threads/t1
    {"status":"idle","runs":["success","success"]}
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from litestar import Litestar, Request, get, post
from litestar.middleware import DefineMiddleware

from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware, RunTracker


class Conversation(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: Conversation) -> Conversation:
    return {"messages": [f"You said {state['messages'][-1]}"]}


builder = StateGraph(Conversation)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)

tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db"))


@asynccontextmanager
async def compile_graph(app: Litestar) -> AsyncIterator[None]:
    app.state.graph = builder.compile(checkpointer=tracker.checkpointer)
    yield


@post("/threads/{thread_id:str}/messages", status_code=200)
async def add_message(request: Request[Any, Any, Any]) -> dict[str, Any]:
    message = (await request.body()).decode()
    run = request.state.run
    result = await request.app.state.graph.ainvoke({"messages": [message]}, run.config)
    return {"thread": run.thread_id, "messages": result["messages"]}


@get("/threads/{thread_id:str}")
async def look(request: Request[Any, Any, Any]) -> dict[str, Any]:
    store, thread_id = request.state.metadata_store, request.path_params["thread_id"]
    thread = await store.get_thread(thread_id)
    runs = await store.search_runs(thread_id=thread_id)
    wrote = [run["status"] for run in runs if run["checkpoint_count"]]  # without those that only looked
    return {"status": None if thread is None else thread["status"], "runs": wrote}


# Litestar makes a middleware for each handler: they share the tracker.
runs = DefineMiddleware(RunMiddleware, tracker=tracker, thread_path="/threads/{thread_id}")
app = Litestar(
    [add_message, look],
    middleware=[runs],
    lifespan=[tracker.lifespan, compile_graph],  # the tracker first: the graph needs what it opens
)
