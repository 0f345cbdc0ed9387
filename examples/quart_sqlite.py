"""Quart, with an answer that is streamed while the graph runs; state in a SQLite file, which a restart does not touch.

Purpose   `app.asgi_app` wrapped, so that `quart run` and Quart's own hooks work as ever; a stream that is in its run.
Install   pip install '.[sqlite]' quart uvicorn              (in a checkout of the repository)
Run       uvicorn examples.quart_sqlite:app                  (makes skeino.db in the current folder)

Expect

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Hello'
    You
    said
    Hello

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -d 'Again'
    You
    said
    Again
    $ curl http://127.0.0.1:8000/threads/t1/messages
    {"messages":["Hello","You said Hello","Again","You said Again"]}
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

from langgraph.config import get_stream_writer
from langgraph.graph import END, START, StateGraph
from quart import Quart, Response, request

from skeino import Run, SkeinoSettings
from skeino_asgi import RunMiddleware, RunTracker


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    words = f"You said {state['messages'][-1]}".split()
    write = get_stream_writer()
    for word in words:
        write(word)
    return {"messages": [" ".join(words)]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)

tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db"))
app = Quart(__name__)
app.asgi_app = RunMiddleware(  # type: ignore[method-assign]
    app.asgi_app,
    tracker=tracker,
    thread_path="/threads/{thread_id}",
)


@app.before_serving
async def compile_graph() -> None:
    app.extensions["graph"] = builder.compile(checkpointer=tracker.checkpointer)  # the tracker is open by now


@app.post("/threads/<thread_id>/messages")
async def add_message(thread_id: str) -> Response:
    message = await request.get_data(as_text=True)
    config = run_of_request().config

    async def words() -> AsyncIterator[str]:
        async for word in app.extensions["graph"].astream({"messages": [message]}, config, stream_mode="custom"):
            yield f"{word}\n"

    return Response(words(), mimetype="text/plain")


@app.get("/threads/<thread_id>/messages")
async def list_messages(thread_id: str) -> dict[str, Any]:
    state = await app.extensions["graph"].aget_state(run_of_request().config)
    return {"messages": state.values.get("messages", [])}


def run_of_request() -> Run:
    run: Run = request.scope["state"]["run"]
    return run
