"""FastAPI and SQLite: the conversations of several users, by requests and over a WebSocket.

Purpose   A graph of three nodes; the thread in the path, and its owner; each message is a run, on a WebSocket, too.
Install   pip install '.[sqlite]' fastapi 'uvicorn[standard]'    (in a checkout of the repository)
Run       uvicorn examples.fastapi_sqlite:app                    (makes skeino.db in the current folder)

Expect

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -H 'X-User: ada' -H 'Content-Type: application/json' -d '{"text": "Hello"}'
    {"answer":"Your message 1 has 5 letters."}
    $ curl http://127.0.0.1:8000/threads/t1 -H 'X-User: bob'
    {"error": "thread_not_found", "detail": "There is no such thread."}
    $ curl http://127.0.0.1:8000/threads/t1
    {"error": "refused", "detail": "Say who you are in X-User."}

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/threads/t1/messages -H 'X-User: ada' -H 'Content-Type: application/json' -d '{"text": "Again"}'
    {"answer":"Your message 2 has 5 letters."}
    $ curl http://127.0.0.1:8000/threads/t1 -H 'X-User: ada'
    {"status":"idle","runs":["success","success"]}
"""  # noqa: E501 (a command to copy stays on one line)

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, TypedDict

from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from langgraph.graph import StateGraph
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans
from skeino_asgi.fastapi import CurrentMetadataStore, CurrentRun


class State(TypedDict):
    messages: Annotated[list[str], operator.add]
    number: int
    letters: int
    answer: str


def count_messages(state: State) -> dict[str, Any]:
    return {"number": len(state["messages"])}


def count_letters(state: State) -> dict[str, Any]:
    return {"letters": sum(character.isalpha() for character in state["messages"][-1])}


def answer(state: State) -> dict[str, Any]:
    return {"answer": f"Your message {state['number']} has {state['letters']} letters."}


builder = StateGraph(State).add_sequence([count_messages, count_letters, answer]).set_entry_point("count_messages")

tracker = RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="skeino.db"))


@asynccontextmanager
async def compile_graph(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"graph": builder.compile(checkpointer=tracker.checkpointer)}


def user_of(connection: HTTPConnection) -> str:
    """Your authentication has a better answer."""
    if not (user := connection.headers.get("x-user")):
        raise HTTPException(401, "Say who you are in X-User.")
    return user


app = FastAPI(lifespan=combine_lifespans(tracker.lifespan, compile_graph))  # the tracker first
app.add_middleware(RunMiddleware, tracker=tracker, thread_path="/threads/{thread_id}", owner=user_of)


class Message(BaseModel):
    text: str


@app.post("/threads/{thread_id}/messages")
async def add_message(request: Request, message: Message, run: CurrentRun) -> dict[str, str]:
    state = await request.state.graph.ainvoke({"messages": [message.text]}, run.config)
    return {"answer": state["answer"]}


@app.get("/threads/{thread_id}")
async def show_thread(thread_id: str, run: CurrentRun, store: CurrentMetadataStore) -> dict[str, Any]:
    """How the thread stands, and the runs that wrote to it; the request itself is a run that wrote nothing."""
    thread = await store.get_thread(thread_id, owner=run.owner)
    runs = await store.search_runs(thread_id=thread_id, owner=run.owner)
    status = None if thread is None else thread["status"]
    return {"status": status, "runs": [one["status"] for one in runs if one["checkpoint_count"]]}


@app.websocket("/threads/{thread_id}/talk")
async def talk(websocket: WebSocket, thread_id: str) -> None:
    """The connection is no run, for it may last for hours; each message is one, of the same owner."""
    await websocket.accept()
    try:
        while True:
            text = await websocket.receive_text()
            async with tracker.run(thread_id=thread_id) as run:
                state = await websocket.state.graph.ainvoke({"messages": [text]}, run.config)
            await websocket.send_text(state["answer"])
    except WebSocketDisconnect:
        pass
