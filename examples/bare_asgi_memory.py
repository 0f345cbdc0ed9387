"""A bare ASGI application whose requests are runs; state in memory, gone when the process ends.

Purpose   The smallest set-up: one middleware around any ASGI application, nothing else to configure.
Install   pip install . uvicorn                              (in a checkout of the repository)
Run       uvicorn examples.bare_asgi_memory:app

Expect

    $ curl -X POST http://127.0.0.1:8000/ -H 'X-Thread-ID: t1' -d 'Hello'
    {"thread": "t1", "run": "…", "messages": ["Hello", "You said Hello"]}
    $ curl -X POST http://127.0.0.1:8000/ -H 'X-Thread-ID: t1' -d 'Again'
    {"thread": "t1", "run": "…", "messages": ["Hello", "You said Hello", "Again", "You said Again"]}

The same id is in the response's header X-Run-ID. Without X-Thread-ID each request is a thread of its own.
"""

from __future__ import annotations

import json
import operator
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph
from starlette.types import Receive, Scope, Send

from skeino import Run, SkeinoSettings
from skeino_asgi import RunMiddleware


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


def answer(state: State) -> State:
    return {"messages": [f"You said {state['messages'][-1]}"]}


builder = StateGraph(State)
builder.add_node("answer", answer)
builder.add_edge(START, "answer")
builder.add_edge("answer", END)


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    if scope["method"] != "POST":
        await respond(send, 405, {"error": "POST a message"})
        return
    message = await body_of(receive)
    run: Run = scope["state"]["run"]
    graph = builder.compile(checkpointer=scope["state"]["checkpointer"])
    result = await graph.ainvoke({"messages": [message]}, run.config)
    await respond(send, 200, {"thread": run.thread_id, "run": run.run_id, "messages": result["messages"]})


async def body_of(receive: Receive) -> str:
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body.decode()


async def respond(send: Send, status: int, content: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(content).encode()})


app = RunMiddleware(application, settings=SkeinoSettings(checkpointer_scheme="memory"))
