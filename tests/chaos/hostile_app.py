"""The application that is attacked: it does what a request asks for, with whatever the request brings.

It is careless on purpose, as a hurried engineer is: a client's JSON goes into graphs' configs and into searches.
"""

from __future__ import annotations

import json
import logging
import traceback
from random import Random
from typing import Annotated, Any, TypedDict

from langgraph.graph import END, START, StateGraph

from skeino.errors import SkeinoError
from skeino.persistence.protocol import ThreadSearch
from tests.chaos import hostile_inputs as inputs
from tests.chaos.hostile_inputs import CANARY

logger = logging.getLogger("an.application")

RAISING = ("raise", "raise-late", "raise-after")
"""What the application answers with an exception of its own."""


def is_refusal(exc: Exception) -> bool:
    """Whether it is skeino's, or comes from LangGraph's serializer, of a state that it cannot write."""
    if isinstance(exc, SkeinoError):
        return True
    *_, last = traceback.walk_tb(exc.__traceback__)
    return isinstance(exc, TypeError) and last[0].f_code.co_filename.endswith("serde/jsonplus.py")


class State(TypedDict, total=False):
    said: Annotated[list[Any], lambda old, new: [*old, *new][-4:]]
    note: Any


def graph_of(saver: Any) -> Any:
    graph = StateGraph(State)
    graph.add_node("answer", lambda state: {"said": ["answer"], "note": state.get("note")})
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph.compile(checkpointer=saver)


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The header `x-do` says what to do, `x-seed` with which input."""
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    do, dice = headers.get(b"x-do", ""), Random(headers.get(b"x-seed", ""))
    state, run = scope["state"], scope["state"]["run"]
    logger.info("asked to %s", do if do.isalpha() else "something")
    if do == "raise":
        raise inputs.exception(dice)
    if do == "raise-late":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise inputs.exception(dice)
    status = 200
    try:
        await _do(do, dice, state, run, await _body(receive))
    except Exception as exc:
        if not is_refusal(exc):
            raise
        status = 400 if CANARY not in str(exc) else 599  # it repeats what it refuses
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": b"done"})
    if do == "raise-after":
        raise inputs.exception(dice)


async def _do(do: str, dice: Random, state: Any, run: Any, body: bytes) -> None:
    store, saver = state["metadata_store"], state["checkpointer"]
    if do == "fail" and run is not None:
        run.fail(inputs.exception(dice))
    elif do == "metadata" and run is not None:
        run.metadata["safe"] = 1
        run.metadata |= {inputs.text(dice): inputs.value(dice)}
    elif do == "thread" and run is not None:
        run.thread_id = inputs.an_id(dice)
    elif do in ("graph", "state", "search"):
        try:
            asked = json.loads(body)
        except (ValueError, RecursionError):
            return
        if not isinstance(asked, dict):
            return
        if do == "search":
            await store.search_threads(**{name: asked[name] for name in asked if name in ThreadSearch.__annotations__})
            return
        configurable = asked.get("configurable") or {}
        if not isinstance(configurable, dict):
            return
        if run is not None and "thread_id" not in configurable:
            configurable = {**configurable, **run.config["configurable"]}
        if "thread_id" not in configurable or not isinstance(configurable.get("checkpoint_ns", ""), str):
            return  # LangGraph itself takes apart a namespace, before it asks the saver
        config = {"configurable": configurable}
        graph = graph_of(saver)
        if do == "graph":
            await graph.ainvoke({"said": [asked.get("said")], "note": asked.get("note")}, config)
        else:
            await graph.aget_state(config)


async def _body(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or not message.get("more_body", False):
            return bytes(body)


# ── Requests ─────────────────────────────────────────────────────────────────────────────────────────────────

DOING = ("answer", *RAISING, "fail", "metadata", "thread", "graph", "graph", "state", "search", "")


def request(dice: Random, number: int) -> tuple[dict[str, Any], bytes]:
    """An ASGI scope, without its state, and a body."""
    do = dice.choice(DOING)
    headers = [(b"x-do", do.encode()), (b"x-seed", f"{number}".encode()), (b"host", b"test")]
    if dice.random() < 0.6:
        owner = dice.choice((b"ann", b"mallory", _bytes(dice)))
        headers.append((b"x-owner", owner.replace(b"victim", b"nobody")))  # whom nobody else can be
    for name in (b"x-thread-id", b"x-request-id", b"traceparent"):
        headers += [(name, _bytes(dice)) for _ in range(dice.choice((0, 1, 1, 1, 2)))]
    headers += [(name, f"Bearer {CANARY}".encode()) for name in (b"authorization", b"cookie", b"x-api-key")]
    path = dice.choice(("/chat", "/", f"/threads/{inputs.text(dice)}", f"/threads/victim/{inputs.text(dice)}"))
    path = dice.choice((path, path, f"/x/token={CANARY}/y", f"/{inputs.text(dice)}"))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": dice.choice(("POST", "POST", "GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PROPFIND", "x\r\ny")),
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": f"api_key={CANARY}".encode(),
        "root_path": dice.choice(("", "", "/api", inputs.text(dice))),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("test", 80),
    }
    return scope, _json(dice)


def _bytes(dice: Random) -> bytes:
    kind = dice.random()
    if kind < 0.3:
        known: tuple[bytes, ...] = (b"t1", b"t2", b"victim", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01")
        return dice.choice(known)
    if kind < 0.6:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(40)))
    return inputs.text(dice).encode("utf-8", "surrogatepass")


def _json(dice: Random) -> bytes:
    asked: dict[str, Any] = {"said": _of_json(dice), "note": _of_json(dice)}
    if dice.random() < 0.5:
        asked["configurable"] = _of_json(inputs.configurable(dice) | {"thread_id": dice.choice(("t1", "t2", "victim"))})
    if dice.random() < 0.3:
        asked = {name: _of_json(one) for name, one in inputs.search(dice).items()}
    body = json.dumps(asked).encode()
    broken: tuple[bytes, ...] = (b"", b"[" * 5000, b"\xff", b'{"k": "\\ud800"}', body[:-3])
    return body if dice.random() < 0.9 else dice.choice(broken)


def _of_json(given: Any) -> Any:
    """As much of it as JSON can say; of dice, something drawn with them."""
    if isinstance(given, Random):
        given = inputs.value(given)
    try:
        return json.loads(json.dumps(given, default=lambda one: None))
    except (ValueError, TypeError, RecursionError):
        return "x"
