"""BlackSheep, wrapped: the graph is compiled in its lifespan and injected; state in memory, gone when the process ends.

Purpose   BlackSheep's own lifespan inside of ours, and its handlers, which have the run in `request.scope["state"]`.
Install   pip install . blacksheep uvicorn                   (in a checkout of the repository)
Run       uvicorn examples.blacksheep_memory:app

Expect

    $ curl -X POST http://127.0.0.1:8000/messages -H 'X-Thread-ID: t1' -d 'Hello'
    {"thread":"t1","messages":["Hello","You said Hello"]}
    $ curl -X POST http://127.0.0.1:8000/messages -H 'X-Thread-ID: t1' -d 'Again'
    {"thread":"t1","messages":["Hello","You said Hello","Again","You said Again"]}

Without X-Thread-ID each request is a thread of its own, whose id is in the response's X-Thread-ID.
"""

from __future__ import annotations

import operator
from collections.abc import AsyncIterator
from typing import Annotated, Any, TypedDict

from blacksheep import Application, Request, post
from langgraph.graph import END, START, StateGraph
from langgraph.graph.state import CompiledStateGraph

from skeino import Run, SkeinoSettings
from skeino_asgi import RunMiddleware, RunTracker


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    return {"messages": [f"You said {state['messages'][-1]}"]}


Graph = CompiledStateGraph[State, None, State, State]

builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)

tracker = RunTracker(SkeinoSettings(checkpointer_scheme="memory"))
application = Application()


@application.lifespan  # type: ignore[untyped-decorator]
async def compile_graph() -> AsyncIterator[None]:
    graph = builder.compile(checkpointer=tracker.checkpointer)  # the tracker is open by now
    application.services.register(Graph, instance=graph)
    yield


@post("/messages")
async def add_message(request: Request, graph: Graph) -> dict[str, Any]:
    message = await request.text()
    run: Run = request.scope["state"]["run"]  # type: ignore[typeddict-item]
    result = await graph.ainvoke({"messages": [message]}, run.config)
    return {"thread": run.thread_id, "messages": result["messages"]}


app = RunMiddleware(application, tracker=tracker)
