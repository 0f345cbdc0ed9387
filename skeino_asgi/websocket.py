"""`WebSocketExchange`: one WebSocket connection, watched as its messages pass, where each is a run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from starlette.websockets import WebSocketDisconnect

from skeino.runs import Run
from skeino_asgi.exchange import storable_status, with_run
from skeino_asgi.outcome import HTTP_ERROR, Outcome, failed, interrupted, is_stopped, raised, stopped, succeeded

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send

INTERNAL_ERROR: Final = 1011
SERVICE_RESTART: Final = 1012
"""Close codes (RFC 6455, section 7.4.1, and IANA's registry). Servers close with the second when they shut down."""


class WebSocketExchange:
    """Watches one connection's `receive` and `send`, and adds the run's headers to its acceptance.

    Either side may close it, and the client just by going away: that is how a connection ends, so it is no failure.
    """

    __slots__ = ("_receive", "_run", "_send", "closed_by_app", "closed_by_client", "denied", "left", "status")

    def __init__(self, run: Run, receive: Receive, send: Send) -> None:
        self._run = run
        self._receive = receive
        self._send = send
        self.closed_by_client: int | None = None
        self.closed_by_app: int | None = None
        self.denied = False  # refused with a complete HTTP response
        self.left = False
        """The client was gone when the application wanted to send it something."""
        self.status: int | None = None  # of that response

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "websocket.disconnect" and self.closed_by_app is None:
            self.closed_by_client = message.get("code") or 1005  # "no status received"
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            message = with_run(message, self._run)
        elif kind == "websocket.close" and self.closed_by_client is None:
            self.closed_by_app = message.get("code") or 1000
        elif kind == "websocket.http.response.start":
            self.status = storable_status(message["status"])
            message = with_run(message, self._run)
        try:
            await self._send(message)
        except OSError:  # the client is gone (ASGI WebSocket, since specification 2.4)
            self.left = True
            raise
        if kind == "websocket.http.response.body" and not message.get("more_body", False):
            self.denied = True

    def outcome(self, exc: BaseException | None) -> Outcome:
        """The run's outcome, once the application has returned or raised."""
        if isinstance(exc, BaseExceptionGroup) and exc.split(WebSocketDisconnect)[1] is None:
            exc = WebSocketDisconnect()  # raised within a task group
        if self._run.conflict is not None and is_stopped(self._run, exc):
            return stopped(self._run.conflict, self.status)
        if isinstance(exc, asyncio.CancelledError):
            return interrupted("cancelled", "The connection was cancelled, by the server or a time limit.")
        if self.closed_by_client == SERVICE_RESTART and (exc is None or isinstance(exc, WebSocketDisconnect)):
            return interrupted("shutdown", "The server closed the connection when it stopped.")
        if isinstance(exc, WebSocketDisconnect) and self.closed_by_client is not None:
            return succeeded()  # it was waiting for the next message
        if isinstance(exc, WebSocketDisconnect | OSError) and self.left:
            return interrupted("client_disconnected", "The client left while it was being sent something.")
        if exc is not None:
            return raised(exc, "during the connection", self.status)
        if self.denied:
            if self.status is not None and self.status >= 500:
                return failed(HTTP_ERROR, f"The application answered with status {self.status}.", self.status)
            return succeeded(self.status)
        if self.closed_by_app is not None:
            if self.closed_by_app == INTERNAL_ERROR:
                return failed("websocket_error", f"The application closed the connection with {INTERNAL_ERROR}.")
            return succeeded()
        if self.closed_by_client is not None:
            return succeeded()
        return failed("no_response", "The application returned without closing the connection.")
