"""A checkpointer of your own behind a scheme of your own, with a run list that survives a restart as well.

Purpose   @register_checkpointer and @register_metadata_store. LangGraph's stock AsyncSqliteSaver stands for your
          saver: whatever is a BaseCheckpointSaver will do, and skeino stamps what it writes.
Install   pip install '.[sqlite]' uvicorn                    (in a checkout of the repository)
Run       uvicorn examples.custom_backend:app                (makes mydb.db and mydb-runs.db in the current folder)

Expect

    $ curl -X POST http://127.0.0.1:8000/ -H 'X-Thread-ID: t1' -d 'Hello'
    {"messages":["Hello","You said Hello"],"earlier_runs":0}

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/ -H 'X-Thread-ID: t1' -d 'Again'
    {"messages":["Hello","You said Hello","Again","You said Again"],"earlier_runs":1}
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import aiosqlite
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from langgraph.graph import END, START, StateGraph
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from skeino import SkeinoSettings
from skeino.persistence import (
    CheckpointerSpec,
    MetadataStoreProtocol,
    open_persistence,
    register_checkpointer,
    register_metadata_store,
)
from skeino_asgi import RunMiddleware


@register_checkpointer("mydb")
@asynccontextmanager
async def open_mydb(spec: CheckpointerSpec) -> AsyncIterator[BaseCheckpointSaver[Any]]:
    """The spec has the settings' `scheme`, `uri` and `options`; what is opened here is closed here."""
    path = spec.required_uri("'mydb.db'")
    options = spec.checked_options(timeout=((int, float), 5.0))  # a misspelt option fails at start-up
    async with aiosqlite.connect(path, timeout=options["timeout"]) as connection:
        saver = AsyncSqliteSaver(connection)
        await saver.setup()
        yield saver


@register_metadata_store("mydb")
@asynccontextmanager
async def open_mydb_runs(spec: CheckpointerSpec) -> AsyncIterator[MetadataStoreProtocol]:
    """Threads and runs go to a built-in store beside it; a store of your own implements `MetadataStoreProtocol`."""
    path = Path(spec.required_uri("'mydb.db'"))
    beside = SkeinoSettings(
        checkpointer_scheme="sqlite",
        checkpointer_uri=str(path.with_stem(f"{path.stem}-runs")),
        checkpointer_options={},  # not those of SKEINO_CHECKPOINTER_OPTIONS, which are for mydb
    )
    async with open_persistence(beside) as persistence:
        yield persistence.metadata_store


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    return {"messages": [f"You said {state['messages'][-1]}"]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)


async def add_message(request: Request) -> Response:
    run, store = request.state.run, request.state.metadata_store
    earlier = await store.search_runs(thread_id=run.thread_id, status="success")
    graph = builder.compile(checkpointer=request.state.checkpointer)
    result = await graph.ainvoke({"messages": [(await request.body()).decode()]}, run.config)
    return JSONResponse({"messages": result["messages"], "earlier_runs": len(earlier)})


settings = SkeinoSettings(checkpointer_scheme="mydb", checkpointer_uri="mydb.db", checkpointer_options={"timeout": 10})
app = RunMiddleware(Starlette(routes=[Route("/", add_message, methods=["POST"])]), settings=settings)
