"""FastAPI and PostgreSQL: an order waits for a human's decision, through a restart if need be.

Purpose   Settings from the environment, so that no password stands in a file; a graph that pauses; an owner.
Install   pip install '.[postgres]' fastapi uvicorn          (in a checkout of the repository)
Run       export SKEINO_CHECKPOINTER_SCHEME=postgres
          export SKEINO_CHECKPOINTER_URI='postgresql://user:password@localhost:5432/shop'
          uvicorn examples.fastapi_postgres:app              (makes its tables in that database)

Expect

    $ curl -X POST http://127.0.0.1:8000/orders/o1 -H 'X-User: ada' -H 'Content-Type: application/json' -d '{"item": "tea"}'
    {"order":"o1","question":"Buy tea?"}
    $ curl http://127.0.0.1:8000/orders/o1 -H 'X-User: ada'
    {"status":"interrupted","runs":["success"]}

Stop the server and start it again:

    $ curl -X POST http://127.0.0.1:8000/orders/o1/decision -H 'X-User: ada' -H 'Content-Type: application/json' -d '{"approved": true}'
    {"order":"o1","outcome":"bought tea"}
    $ curl http://127.0.0.1:8000/orders/o1 -H 'X-User: ada'
    {"status":"idle","runs":["success","success"]}
    $ curl http://127.0.0.1:8000/orders/o1 -H 'X-User: bob'
    {"error": "thread_not_found", "detail": "There is no such thread."}
"""  # noqa: E501 (a command to copy stays on one line)

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NotRequired, TypedDict

from fastapi import FastAPI, Request
from langgraph.graph import END, START, StateGraph
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from starlette.requests import HTTPConnection

from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans
from skeino_asgi.fastapi import CurrentMetadataStore, CurrentRun


class State(TypedDict):
    item: str
    outcome: NotRequired[str]


def decide(state: State) -> dict[str, str]:
    approved = interrupt(f"Buy {state['item']}?")  # the run ends here; a later one resumes with the answer
    return {"outcome": f"bought {state['item']}" if approved else "declined"}


builder = StateGraph(State)
builder.add_node("decide", decide)
builder.add_edge(START, "decide")
builder.add_edge("decide", END)

tracker = RunTracker()  # SkeinoSettings() reads SKEINO_* variables


@asynccontextmanager
async def compile_graph(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"graph": builder.compile(checkpointer=tracker.checkpointer)}


def owner_of(connection: HTTPConnection) -> str:
    """Whose request it is. Take it from your authentication: a header that anybody may set stands in for it here."""
    return connection.headers.get("x-user", "nobody")


app = FastAPI(lifespan=combine_lifespans(tracker.lifespan, compile_graph))
app.add_middleware(RunMiddleware, tracker=tracker, thread_path="/orders/{thread_id}", owner=owner_of)


class Order(BaseModel):
    item: str


class Decision(BaseModel):
    approved: bool


@app.post("/orders/{order_id}")
async def place(request: Request, run: CurrentRun, order_id: str, order: Order) -> dict[str, Any]:
    result = await request.state.graph.ainvoke({"item": order.item}, run.config)
    return {"order": order_id, "question": result["__interrupt__"][0].value}


@app.post("/orders/{order_id}/decision")
async def decision(request: Request, run: CurrentRun, order_id: str, decision: Decision) -> dict[str, Any]:
    result = await request.state.graph.ainvoke(Command(resume=decision.approved), run.config)
    return {"order": order_id, "outcome": result["outcome"]}


@app.get("/orders/{order_id}")
async def look(store: CurrentMetadataStore, order_id: str) -> dict[str, Any]:
    thread = await store.get_thread(order_id)
    runs = await store.search_runs(thread_id=order_id)
    wrote = [run["status"] for run in runs if run["checkpoint_count"]]  # without those that only looked
    return {"status": None if thread is None else thread["status"], "runs": wrote}
