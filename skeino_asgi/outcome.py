"""What was seen of a request, and the run status that follows from it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect

from skeino.persistence.rows import RunError, SettledStatus, TerminalStatus
from skeino.runs import Run
from skeino.scrubbing import scrubbed

if TYPE_CHECKING:
    from starlette.types import Message, Receive, Send


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    status: TerminalStatus
    error: RunError | None = None
    http_status: int | None = None


class HttpExchange:
    """Watches one request's `receive` and `send`, and adds the run's headers to the response.

    A server's `http.disconnect` counts only before the response is complete: uvicorn sends one afterwards, too.
    """

    __slots__ = ("_receive", "_run", "_send", "_started", "_trailers", "complete", "disconnected", "http_status")

    def __init__(self, run: Run, receive: Receive, send: Send) -> None:
        self._run = run
        self._receive = receive
        self._send = send
        self._started = False
        self._trailers = False
        self.http_status: int | None = None
        self.complete = False
        self.disconnected = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self.complete:
            self.disconnected = True
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            self.http_status = _storable_status(message["status"])
            self._started = True
            self._trailers = message.get("trailers", False)
            headers = [*message.get("headers", ()), (b"x-run-id", self._run.run_id.encode())]
            if self._run.minted_thread_id and self._run.thread_id is not None:
                headers.append((b"x-thread-id", self._run.thread_id.encode()))
            message = {**message, "headers": headers}  # a new one: some applications reuse theirs
        try:
            await self._send(message)
        except OSError:  # the server's word for a client that left (ASGI HTTP, since specification 2.4)
            self.disconnected = not self.complete
            raise
        if (
            (kind == "http.response.body" and not message.get("more_body", False) and not self._trailers)
            or (kind == "http.response.trailers" and not message.get("more_trailers", False))
            or kind == "http.response.pathsend"
        ):
            self.complete = True

    def outcome(self, exc: BaseException | None) -> Outcome:
        """The run's outcome, once the application has returned or raised."""
        if isinstance(exc, asyncio.CancelledError):
            return self._interrupted("cancelled", "The request was cancelled, by the server or a time limit.")
        if isinstance(exc, ClientDisconnect) and not self.disconnected and isinstance(exc.__context__, OSError):
            exc = exc.__context__  # Starlette takes any OSError of a stream's body for the client's leaving
        if isinstance(exc, ClientDisconnect) or (exc is None and self.disconnected and not self.complete):
            return self._interrupted("client_disconnected", "The client left before the response was complete.")
        if exc is not None:
            return Outcome(*outcome_of_exception(exc, self._phase()), self.http_status)
        if not self._started:
            return self._failed("no_response", "The application returned without a response.")
        if not self.complete:
            return self._failed("incomplete_response", "The application returned before its response was complete.")
        if self.http_status is not None and self.http_status >= 500:
            return self._failed("http_error", f"The application answered with status {self.http_status}.")
        return Outcome("success", None, self.http_status)

    def _phase(self) -> str:
        if not self._started:
            return "before the response"
        return "after the response" if self.complete else "during the response"

    def _interrupted(self, code: str, message: str) -> Outcome:
        return Outcome("interrupted", RunError(code=code, type=None, message=message), self.http_status)

    def _failed(self, code: str, message: str) -> Outcome:
        return Outcome("error", RunError(code=code, type=None, message=message), self.http_status)


def outcome_of_exception(exc: BaseException, phase: str) -> tuple[TerminalStatus, RunError]:
    """The status and the row's error for an exception: its class, and its message scrubbed and bounded."""
    kind = type(exc)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(exc, asyncio.CancelledError | GeneratorExit):
        return "interrupted", RunError(code="cancelled", type=None, message=f"The run was cancelled {phase}.")
    timed_out = isinstance(exc, TimeoutError)
    try:
        text = str.__str__(str(exc))
    except Exception:
        text = "(its message could not be read)"
    message = scrubbed(f"{phase}: {text}" if text else phase)
    code = "timeout" if timed_out else "exception"
    return "timeout" if timed_out else "error", RunError(code=code, type=scrubbed(name, limit=200), message=message)


def _storable_status(status: object) -> int | None:
    """The status as a row keeps it; None for one that HTTP does not have, which the server will refuse."""
    if isinstance(status, int) and not isinstance(status, bool) and 100 <= status <= 999:
        return int.__index__(status)
    return None


def thread_status_after(run: Run, status: TerminalStatus) -> SettledStatus | None:
    """How the run leaves its thread; None where it wrote no state and so says nothing about it."""
    paused = run.ledger.paused_on(run.thread_id)
    wrote = run.ledger.checkpoint_count > 0 or paused
    if status in ("error", "timeout"):
        return "error" if wrote or run.creates_thread else None
    if not wrote:
        return None
    return "interrupted" if status == "interrupted" or paused else "idle"
