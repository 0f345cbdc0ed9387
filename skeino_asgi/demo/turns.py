"""A turn of a chat: what `POST /chat` accepts, and the server-sent events it answers with.

Events, each with a JSON object: `run` (its and its thread's id), `token` (`text`), then `waiting` (`question`) if
the graph paused for a human, and at last `end`, or `error` (`message`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from langchain_core.messages import AIMessageChunk, HumanMessage
from langgraph.types import Command
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import StreamingResponse

from skeino import Run, SkeinoError
from skeino_asgi.demo.graph import ChatGraph, IntendedError

MAX_MESSAGE_CHARACTERS: Final = 4000
UNEXPECTED: Final = "Something went wrong; the server's log says what."


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A message, or the decision on a thread that waits for one."""

    thread_id: Any
    """As the client sent it: the run checks it."""
    message: str | None
    resume: Literal["approve", "decline"] | None

    @classmethod
    async def read(cls, request: Request) -> ChatRequest:
        """The request's body.

        Raises:
            HTTPException: 415 or 422, its detail a sentence for the client.
        """
        # Other pages in the same browser may post forms and plain text here, but no JSON.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "Send JSON, with the header 'Content-Type: application/json'.")
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            raise HTTPException(422, 'The body is not JSON: send an object such as {"message": "Hello"}.') from None
        if not isinstance(body, dict) or ("message" in body) == ("resume" in body):
            raise HTTPException(422, "Send a JSON object with either a 'message' or a 'resume'.")
        if "resume" in body:
            if body["resume"] not in ("approve", "decline"):
                raise HTTPException(422, "'resume' must be 'approve' or 'decline'.")
            if body.get("thread_id") is None:
                raise HTTPException(422, "'resume' needs the 'thread_id' of the thread that waits.")
            return cls(body["thread_id"], None, body["resume"])
        return cls(body.get("thread_id"), _checked_message(body["message"]), None)

    @property
    def graph_input(self) -> Any:
        """What the graph is invoked with."""
        if self.resume is not None:
            return Command(resume=self.resume)
        return {"messages": [HumanMessage(cast("str", self.message))]}


def turn_response(graph: ChatGraph, run: Run, graph_input: Any) -> StreamingResponse:
    """The turn as a stream of events.

    A failure is told to the client by an event, and raised once the response is complete: the run ends as
    `error`, and the client's connection is not cut in the middle of a response.
    """
    turn = _Turn(graph, run, graph_input)
    return StreamingResponse(
        turn.events(),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},  # nginx would hold the words back
        background=BackgroundTask(turn.raise_failure),
    )


class _Turn:
    def __init__(self, graph: ChatGraph, run: Run, graph_input: Any) -> None:
        self._graph = graph
        self._config = run.config  # a run without a thread gets one here, in time for the X-Thread-ID header
        self._ids = {"run_id": run.run_id, "thread_id": run.thread_id}
        self._input = graph_input
        self._failure: Exception | None = None

    async def events(self) -> AsyncIterator[str]:
        yield _event("run", self._ids)
        parts = cast("Any", self._graph.astream(self._input, self._config, stream_mode=["messages", "updates"]))
        try:
            async with aclosing(parts):
                async for mode, part in parts:
                    if mode == "messages" and isinstance(part[0], AIMessageChunk) and part[0].content:
                        yield _event("token", {"text": part[0].content})
                    elif mode == "updates" and "__interrupt__" in part:
                        yield _event("waiting", part["__interrupt__"][0].value)
            yield _event("end", {})
        except Exception as exc:
            self._failure = exc
            yield _event("error", {"message": _explanation(exc)})

    async def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _checked_message(message: object) -> str:
    if not isinstance(message, str) or not message.strip():
        raise HTTPException(422, "'message' must be a text that is not empty.")
    if len(message) > MAX_MESSAGE_CHARACTERS:
        raise HTTPException(422, f"'message' may have at most {MAX_MESSAGE_CHARACTERS} characters.")
    if "\0" in message or any("\ud800" <= character <= "\udfff" for character in message):
        raise HTTPException(422, "'message' has a character that is no text (NUL, or half of a surrogate pair).")
    return message


def _explanation(exc: Exception) -> str:
    """What the client may know: the text of errors that are written for people, and of no others."""
    if isinstance(exc, IntendedError | SkeinoError):
        return str(exc)
    return UNEXPECTED


def _event(name: str, data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"
