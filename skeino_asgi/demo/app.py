"""The demo's Starlette application: a chat over a LangGraph graph, and its threads, runs and checkpoints as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.types import StateSnapshot
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ExceptionHandler, Scope

from skeino import SkeinoSettings
from skeino.errors import InvalidInputError, StoreUnavailableError, ThreadBusyError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol, RunRow, ThreadRow
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans
from skeino_asgi.demo.graph import ChatGraph, build_graph
from skeino_asgi.demo.turns import UNEXPECTED, ChatRequest, turn_response

PAGE: Final = Path(__file__).parent / "page"
LONGEST_HISTORY: Final = 500
"""Checkpoints that the page shows of one thread."""


def create_app(settings: SkeinoSettings) -> Starlette:
    """The application; its threads, runs and checkpoints are kept where the settings say."""
    tracker = RunTracker(settings)

    @asynccontextmanager
    async def compiled_graph(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"graph": build_graph(tracker.checkpointer)}  # once; every request shares it

    return Starlette(
        lifespan=combine_lifespans(tracker.lifespan, compiled_graph),
        middleware=[Middleware(RunMiddleware, tracker=tracker, exclude=_only_reads)],
        routes=[
            Route("/chat", chat, methods=["POST"]),
            Route("/threads", list_threads),
            Route("/threads/{thread_id:path}/runs", list_runs),
            Route("/threads/{thread_id:path}/history", list_checkpoints),
            Route("/threads/{thread_id:path}", show_thread),
            Route("/threads/{thread_id:path}", delete_thread, methods=["DELETE"]),
            Mount("/", StaticFiles(directory=PAGE, html=True)),
        ],
        exception_handlers=_EXCEPTION_HANDLERS,
    )


async def chat(request: Request) -> Response:
    """`POST /chat`: one turn, streamed. Without a `thread_id` it begins a thread."""
    asked = await ChatRequest.read(request)
    run, graph, store = request.state.run, request.state.graph, request.state.metadata_store
    if asked.resume is not None:
        await _require_thread(store, asked.thread_id)
    if asked.thread_id is not None:
        run.thread_id = asked.thread_id
    config = run.config
    is_waiting = _question(await graph.aget_state(config)) is not None
    if asked.resume is not None and not is_waiting:
        raise HTTPException(409, "This thread does not wait for a decision: send a 'message'.")
    if asked.message is not None:
        if is_waiting:
            raise HTTPException(409, "This thread waits for a decision: send 'resume' with 'approve' or 'decline'.")
        await _set_title(store, config["configurable"]["thread_id"], asked.message)
    return turn_response(graph, run, asked.graph_input)


async def list_threads(request: Request) -> Response:
    """`GET /threads`: the last changed first."""
    return JSONResponse([_thread(row) for row in await request.state.metadata_store.search_threads()])


async def show_thread(request: Request) -> Response:
    """`GET /threads/{id}`: its row, its messages with the run that wrote each, and the question it waits with."""
    row = await _require_thread(request.state.metadata_store, request.path_params["thread_id"])
    snapshots = await _history(request.state.graph, row["thread_id"])
    return JSONResponse(
        {
            **_thread(row),
            "messages": _messages(snapshots),
            "question": _question(snapshots[0]) if snapshots else None,
        }
    )


async def list_runs(request: Request) -> Response:
    """`GET /threads/{id}/runs`: the newest first."""
    store = request.state.metadata_store
    row = await _require_thread(store, request.path_params["thread_id"])
    return JSONResponse([_run(run) for run in await store.search_runs(thread_id=row["thread_id"])])


async def list_checkpoints(request: Request) -> Response:
    """`GET /threads/{id}/history`: its checkpoints, each with the id of the run that wrote it; the newest first."""
    row = await _require_thread(request.state.metadata_store, request.path_params["thread_id"])
    return JSONResponse([_checkpoint(one) for one in await _history(request.state.graph, row["thread_id"])])


async def delete_thread(request: Request) -> Response:
    """`DELETE /threads/{id}`: the thread, its runs, its checkpoints."""
    await request.state.persistence.delete_thread(request.path_params["thread_id"])
    return Response(status_code=204)


# ── What the handlers ask ────────────────────────────────────────────────────────────────────────────────────


def _only_reads(scope: Scope) -> bool:
    return bool(scope["method"] == "GET")  # the page polls; its runs are the turns


async def _require_thread(store: MetadataStoreProtocol, thread_id: str) -> ThreadRow:
    row = await store.get_thread(thread_id)
    if row is None:
        raise ThreadNotFoundError("There is no such thread.")
    return row


async def _set_title(store: MetadataStoreProtocol, thread_id: str, message: str) -> None:
    """Name a thread by its first message."""
    line = " ".join(message.split())
    title = {"title": line if len(line) <= 60 else f"{line[:59].rstrip()}…"}
    row = await store.create_thread(thread_id, metadata=title, if_exists="do_nothing")
    if "title" not in row["metadata"]:  # the middleware had made it, for a request with an X-Thread-ID header
        await store.update_thread(thread_id, metadata=title)


async def _history(graph: ChatGraph, thread_id: str) -> list[StateSnapshot]:
    config: RunnableConfig = {"configurable": {"thread_id": thread_id}}
    return [snapshot async for snapshot in graph.aget_state_history(config, limit=LONGEST_HISTORY)]


def _question(snapshot: StateSnapshot) -> str | None:
    return snapshot.interrupts[0].value["question"] if snapshot.interrupts else None


# ── Rows as JSON ─────────────────────────────────────────────────────────────────────────────────────────────


def _thread(row: ThreadRow) -> dict[str, Any]:
    return {
        "thread_id": row["thread_id"],
        "title": row["metadata"].get("title"),
        "status": row["status"],
        "created_at": row["created_at"].isoformat(),
        "updated_at": row["updated_at"].isoformat(),
    }


def _run(row: RunRow) -> dict[str, Any]:
    finished_at = row["finished_at"]
    return {
        **{name: value.isoformat() if isinstance(value, datetime) else value for name, value in row.items()},
        "duration": None if finished_at is None else (finished_at - row["started_at"]).total_seconds(),
    }


def _checkpoint(snapshot: StateSnapshot) -> dict[str, Any]:
    metadata: Any = snapshot.metadata or {}
    return {
        "checkpoint_id": _checkpoint_id(snapshot.config),
        "parent_id": _checkpoint_id(snapshot.parent_config),
        "run_id": metadata.get("run_id"),
        "step": metadata.get("step"),
        "source": metadata.get("source"),
        "created_at": snapshot.created_at,
        "next": list(snapshot.next),
        "waiting": bool(snapshot.interrupts),
        "message_count": len(snapshot.values.get("messages", ())),
    }


def _checkpoint_id(config: Any) -> str | None:
    return None if config is None else config["configurable"]["checkpoint_id"]


def _messages(snapshots: list[StateSnapshot]) -> list[dict[str, Any]]:
    """The last state's messages; a message's run is that of the first checkpoint that has it."""
    written_by: dict[str, str | None] = {}
    for snapshot in reversed(snapshots):
        for message in snapshot.values.get("messages", ()):
            written_by.setdefault(message.id, (snapshot.metadata or {}).get("run_id"))
    return [
        {
            "role": "user" if isinstance(message, HumanMessage) else "assistant",
            "text": message.content,
            "run_id": written_by[message.id],
        }
        for message in (snapshots[0].values.get("messages", ()) if snapshots else ())
    ]


# ── Errors as JSON ───────────────────────────────────────────────────────────────────────────────────────────


def _answer_with(status: int, detail: str | None = None) -> ExceptionHandler:
    def handler(request: Request, exc: Exception) -> Response:
        return JSONResponse({"detail": detail or str(exc)}, status)

    return handler


def _answer_with_its_own(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return JSONResponse({"detail": exc.detail}, exc.status_code, exc.headers)


_EXCEPTION_HANDLERS: Final[dict[Any, ExceptionHandler]] = {
    HTTPException: _answer_with_its_own,
    InvalidInputError: _answer_with(400),
    ThreadNotFoundError: _answer_with(404),
    ThreadBusyError: _answer_with(409),
    StoreUnavailableError: _answer_with(503),
    Exception: _answer_with(500, UNEXPECTED),  # the run is an error all the same: Starlette raises it again
}
