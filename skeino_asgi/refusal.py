"""`refuse()`: the middleware's own answer, in place of the application's."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException

from skeino.errors import InvalidInputError, RunInterruptedError, StoreError, ThreadBusyError, ThreadNotFoundError

if TYPE_CHECKING:
    from starlette.types import Message, Scope, Send

logger = logging.getLogger("skeino")

RETRY_AFTER_SECONDS: Final = 1

REFUSALS: Final = (InvalidInputError, ThreadNotFoundError, StoreError, HTTPException)
"""What is answered rather than raised, when a request begins with it."""


async def refuse(scope: Scope, send: Send, exc: Exception) -> None:
    """Answer a request, or close a WebSocket before it is accepted."""
    if scope["type"] == "websocket":
        status, code, _ = _answer_to(exc)
        await send({"type": "websocket.close", "code": 1008 if status < 500 else 1013, "reason": code})
        return
    start, body = response_to(exc)
    await send(start)
    await send({**body, "body": b""} if scope["method"] == "HEAD" else body)


def response_to(exc: Exception) -> tuple[Message, Message]:
    """The two messages of the response."""
    status, code, detail = _answer_to(exc)
    body = json.dumps({"error": code, "detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503 or isinstance(exc, ThreadBusyError):
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if isinstance(exc, HTTPException):
        headers += [(name.lower().encode(), value.encode()) for name, value in (exc.headers or {}).items()]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    return start, {"type": "http.response.body", "body": body}


def event_of(exc: Exception) -> bytes:
    """A last server-sent event that says the same."""
    _, code, detail = _answer_to(exc)
    return f"event: error\ndata: {json.dumps({'error': code, 'detail': detail})}\n\n".encode()


def _answer_to(exc: Exception) -> tuple[int, str, str]:
    if isinstance(exc, InvalidInputError):
        return 400, "invalid_input", str(exc)
    if isinstance(exc, ThreadNotFoundError):
        return 404, "thread_not_found", "There is no such thread."
    if isinstance(exc, ThreadBusyError):
        return 409, "thread_busy", "Another run works on this thread: try again when it has ended."
    if isinstance(exc, RunInterruptedError):
        return 409, "run_interrupted", "Another run has taken this thread over."
    if isinstance(exc, HTTPException):  # the application's own answer, from owner= or thread_id=
        return exc.status_code, "refused", exc.detail
    logger.warning("A request is refused: %s", exc)
    return 503, "store_unavailable", "The server cannot keep its state now: try again."
