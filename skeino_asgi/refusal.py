"""`refuse()`: the middleware's own answer, in place of the application's."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from starlette.exceptions import HTTPException

from skeino.errors import InvalidInputError, StoreError, ThreadNotFoundError

if TYPE_CHECKING:
    from starlette.types import Scope, Send

logger = logging.getLogger("skeino")

RETRY_AFTER_SECONDS: Final = 1

REFUSALS: Final = (InvalidInputError, ThreadNotFoundError, StoreError, HTTPException)
"""What is answered rather than raised, when a request begins with it."""


async def refuse(scope: Scope, send: Send, exc: Exception) -> None:
    """Answer a request, or close a WebSocket before it is accepted."""
    status, code, detail = _answer_to(exc)
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008 if status < 500 else 1013, "reason": code})
        return
    body = json.dumps({"error": code, "detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 503:
        headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
    if isinstance(exc, HTTPException):
        headers += [(name.lower().encode(), value.encode()) for name, value in (exc.headers or {}).items()]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _answer_to(exc: Exception) -> tuple[int, str, str]:
    if isinstance(exc, InvalidInputError):
        return 400, "invalid_input", str(exc)
    if isinstance(exc, ThreadNotFoundError):
        return 404, "thread_not_found", "There is no such thread."
    if isinstance(exc, HTTPException):  # the application's own answer, from owner= or thread_id=
        return exc.status_code, "refused", exc.detail
    logger.warning("A request is refused: %s", exc)
    return 503, "store_unavailable", "The server cannot keep its state now: try again."
