"""`HttpExchange`: one request and its response, watched as they pass; from what was seen follows the outcome."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import ClientDisconnect

from skeino.runs import Run
from skeino_asgi.correlation import describe_span
from skeino_asgi.outcome import HTTP_ERROR, Outcome, failed, interrupted, is_stopped, raised, stopped, succeeded
from skeino_asgi.refusal import event_of, response_to

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send


RELEASE_PATIENCE: Final = 2.0
"""Seconds that a response's last part waits until the run's threads are released."""


class HttpExchange:
    """Watches one request's `receive` and `send`, and adds the run's headers to the response.

    A client's leaving counts only before the response is complete: uvicorn sends `http.disconnect` afterwards, too. A
    client that was told a length leaves when it has so many bytes. If the application has come to its last message
    then, an empty one, some frameworks cancel that for the client's leaving: the response is complete all the same.
    """

    # Defaults of the class, and no slots: most requests set few of them, and each costs what a store of it takes.
    status: Any = None
    """As the application has said it; None until the response has started."""
    left = False
    """The client left before the response was complete."""
    cut_off = False
    """The application was cancelled for that."""
    completing = False
    """The server has been handed the last message; it may say that the client left before it returns."""
    complete = False
    _unsent: OSError | None = None
    """What `send` raised for that."""
    _sent = 0
    """Bytes of the body, those of the last message left out."""
    _trailers = False
    _answering = False
    _replaced = False
    _start: Message | None = None

    def __init__(self, run: Run, receive: Receive, send: Send, span: Any) -> None:
        self._run = run
        self._receive = receive
        self._send = send
        self._span = span

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.completing:
            self.left = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self._run.conflict is not None and not self._answering and await self._stand_in(message):
            return
        if kind == "http.response.start":
            self.status = message["status"]
            self._trailers = message.get("trailers", False)
            message = self._start = with_run(message, self._run)
        elif kind == "http.response.body":
            if message.get("more_body", False):
                self._sent += len(message.get("body") or b"")
            else:
                self.completing = not self._trailers
        elif kind == "http.response.trailers":
            self.completing = not message.get("more_trailers", False)
        elif kind == "http.response.pathsend":
            self.completing = True
        if self.completing and self._run.has_claimed:
            await self._release_threads()
        if self.completing and self._span is not None:  # OpenTelemetry's middleware ends it with the last message
            describe_span(self._span, self._run)
        try:
            await self._send(message)
        except OSError as exc:  # the server's word for a client that left (ASGI HTTP, since specification 2.4)
            self.left, self._unsent = not (self.complete or self._client_has_all()), exc
            raise
        self.complete = self.completing

    def _client_has_all(self) -> bool:
        """Whether the application has come to its last message, and the client had the whole body before."""
        return self.completing and self._start is not None and _length_of(self._start) <= self._sent

    async def _release_threads(self) -> None:
        """Before the client can send its next request: it must not be kept waiting by this one."""
        if released := self._run.release_threads():
            await asyncio.wait(released, timeout=RELEASE_PATIENCE)

    async def _stand_in(self, message: Message) -> bool:
        """Whether an answer of ours stands in for this message: for that of a framework which takes the conflict with
        another run for an error of the server.
        """
        if message["type"] == "http.response.start" and self.status is None:
            self._replaced = storable_status(message["status"]) is None or message["status"] >= 500
            if self._replaced and self._run.conflict is not None:
                await self._answer(*response_to(self._run.conflict))
        return self._replaced

    async def _answer(self, *messages: Message) -> None:
        self._answering = True
        try:
            for message in messages:
                await self.send(message)
        finally:
            self._answering = False

    async def answer_conflict(self, exc: BaseException) -> bool:
        """Answer the client, if the application has raised because another run has stopped this one, and if it is not
        too late: a stream of events gets a last one. Whether that was done.
        """
        conflict = self._run.conflict
        if conflict is None or not is_stopped(self._run, exc) or self.left or self.complete:
            return False
        if self.status is None:
            await self._answer(*response_to(conflict))
        elif self._start is not None and _is_event_stream(self._start):
            await self._answer({"type": "http.response.body", "body": event_of(conflict)})
        return self.complete

    def outcome(self, exc: BaseException | None) -> Outcome:
        """The run's outcome, once the application has returned or raised."""
        status = self.status
        if type(status) is not int or not 100 <= status <= 999:
            status = storable_status(status)
        if self._run.conflict is not None and (self._replaced or is_stopped(self._run, exc)):
            return stopped(self._run.conflict, status)
        complete = self.complete or self._client_has_all()
        if complete and (exc is None or self._came_of_what_was_not_sent(exc)):
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
        if isinstance(exc, ClientDisconnect) or (self.left and (exc is None or exc is self._unsent)):
            message = "The client left before the response was complete."
            return interrupted("client_disconnected", message, status)
        if exc is not None:
            return raised(exc, self._phase(), status)
        if self.status is None:
            return failed("no_response", "The application returned without a response.")
        return failed("incomplete_response", "The application returned before its response was complete.", status)

    def _came_of_what_was_not_sent(self, exc: BaseException) -> bool:
        """Whether it is what `send` has raised, as the application passes it on, or as Starlette does."""
        cause = exc.__context__ if isinstance(exc, ClientDisconnect) else exc
        return cause is not None and cause is self._unsent

    def _phase(self) -> str:
        status = storable_status(self.status)
        if status is None or (status >= 500 and self.complete):  # which says that it was raised
            return "before the response"
        return "after the response" if self.complete else "during the response"


def with_run(message: Message, run: Run) -> Message:
    """A copy of the message, for some applications use theirs again, whose headers say which run it is."""
    headers = [*(message.get("headers") or ()), (b"x-run-id", run.run_id.encode())]
    if run.minted_thread_id and run.thread_id is not None:
        headers.append((b"x-thread-id", run.thread_id.encode()))
    return {**message, "headers": headers}


def _length_of(start: Message) -> float:
    """Of the body, as the client is told; infinity where it is not told."""
    if start["status"] in (204, 304):
        return 0
    told = next((bytes(value) for name, value in start["headers"] if bytes(name).lower() == b"content-length"), b"")
    return int(told) if told.strip().isdigit() and len(told) < 20 else math.inf


def _is_event_stream(message: Message) -> bool:
    return any(
        bytes(name).lower() == b"content-type" and bytes(value).startswith(b"text/event-stream")
        for name, value in message["headers"]
    )


def storable_status(status: object) -> int | None:
    """The status as a row keeps it; None for one that HTTP does not have, which the server will refuse."""
    if isinstance(status, int) and status is not True and 100 <= status <= 999:
        return int.__index__(status)
    return None
