"""`HttpExchange`: one request and its response, watched as they pass; from what was seen follows the outcome."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from skeino.runs import Run
from skeino_asgi.correlation import describe_span
from skeino_asgi.outcome import HTTP_ERROR, Outcome, failed, interrupted, raised, succeeded

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send


class HttpExchange:
    """Watches one request's `receive` and `send`, and adds the run's headers to the response.

    A client's leaving counts only before the response is complete: uvicorn sends `http.disconnect` afterwards, too.
    """

    __slots__ = (
        "_receive",
        "_run",
        "_send",
        "_span",
        "_trailers",
        "complete",
        "completing",
        "cut_off",
        "left",
        "status",
    )

    def __init__(self, run: Run, receive: Receive, send: Send, span: Any) -> None:
        self._run = run
        self._receive = receive
        self._send = send
        self._span = span
        self._trailers = False
        self.status: Any = None  # as the application has said it; None until the response has started
        self.left = False
        """The client left before the response was complete."""
        self.cut_off = False
        """The application was cancelled for that."""
        self.completing = False
        """The server has been handed the last message; it may say that the client left before it returns."""
        self.complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.completing:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
            message = with_run(message, self._run)
        elif kind == "http.response.body":
            self.completing = not (message.get("more_body", False) or self._trailers)
        elif kind == "http.response.trailers":
            self.completing = not message.get("more_trailers", False)
        elif kind == "http.response.pathsend":
            self.completing = True
        if self.completing and self._span is not None:  # OpenTelemetry's middleware ends it with the last message
            describe_span(self._span, self._run)
        try:
            await self._send(message)
        except OSError:  # the server's word for a client that left (ASGI HTTP, since specification 2.4)
            self.left = not self.complete
            raise
        self.complete = self.completing

    def outcome(self, exc: BaseException | None) -> Outcome:
        """The run's outcome, once the application has returned or raised."""
        status = self.status
        if type(status) is not int or not 100 <= status <= 999:
            status = storable_status(status)
        if exc is None and self.complete:
            if status is not None and status >= 500:
                return failed(HTTP_ERROR, f"The application answered with status {status}.", status)
            return succeeded(status)
        if self.cut_off and not self.complete:
            exc = None  # whatever became of the cancellation
        if isinstance(exc, asyncio.CancelledError):
            message = "The request was cancelled, by the server or a time limit."
            return interrupted("cancelled", message, status)
        if isinstance(exc, ClientDisconnect) and not self.left and isinstance(exc.__context__, OSError):
            exc = exc.__context__  # Starlette takes any OSError of a stream's body for the client's leaving
        if isinstance(exc, ClientDisconnect) or (exc is None and self.left):
            message = "The client left before the response was complete."
            return interrupted("client_disconnected", message, status)
        if exc is not None:
            return raised(exc, self._phase(), status)
        if self.status is None:
            return failed("no_response", "The application returned without a response.")
        return failed("incomplete_response", "The application returned before its response was complete.", status)

    def _phase(self) -> str:
        if self.status is None:
            return "before the response"
        return "after the response" if self.complete else "during the response"


def with_run(message: Message, run: Run) -> Message:
    """A copy of the message, for some applications use theirs again, whose headers say which run it is."""
    headers = [*(message.get("headers") or ()), (b"x-run-id", run.run_id.encode())]
    if run.minted_thread_id and run.thread_id is not None:
        headers.append((b"x-thread-id", run.thread_id.encode()))
    extended: Message = message.copy() if type(message) is dict else dict(message)
    extended["headers"] = headers
    return extended


def storable_status(status: object) -> int | None:
    """The status as a row keeps it; None for one that HTTP does not have, which the server will refuse."""
    if isinstance(status, int) and status is not True and 100 <= status <= 999:
        return int.__index__(status)
    return None
