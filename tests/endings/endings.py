"""The table: each ending of a request, what its client and its server do, and what the run's row says afterwards."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from tests.endings.client import (
    Client,
    close_half,
    leave,
    read_all,
    read_until,
    reset,
)
from tests.endings.servers import DAPHNE, GRANIAN, HYPERCORN, SERVERS, UVICORN, UVLOOP, Server, eventually


@dataclass(frozen=True)
class Row:
    """What a run's row says of its end; without a status, there is no run."""

    status: str | None
    code: str | None = None
    http_status: int | None = None


@dataclass(frozen=True)
class Deviation:
    """What is different on a server, and why."""

    row: Row
    reason: str


@dataclass(frozen=True)
class Ending:
    """One way in which a request ends."""

    name: str
    behaviour: str
    """What the handler does: a function of `application.py`."""
    client: Callable[[Client], None]
    row: Row
    configuration: str = "continue"
    """The middleware around the handler: a name in `application.py`."""
    stop: Callable[[Client], None] | None = None
    """What ends the server; None where it lives on."""
    grace: int = 10
    """Seconds that the server gives requests at its end."""
    deviations: Mapping[Server, Deviation] = field(default_factory=dict)
    servers: Sequence[Server] = SERVERS
    more: Sequence[str] = ()
    """Options of the server for this ending alone, which has a process of its own then."""

    def row_on(self, server: Server) -> Row:
        return self.deviations[server].row if server in self.deviations else self.row


# ── What clients do ──────────────────────────────────────────────────────────────────────────────────────────────


def reads_the_answer(client: Client) -> None:
    read_all(client.send())


def waits(client: Client) -> None:
    """For an answer, while the server is being ended."""
    client.send()
    client.await_event("started")


def leaves_while_it_works(client: Client) -> None:
    connection = client.send()
    client.await_event("started")
    leave(connection)
    client.open_gate_unless_it_ends()


def stays_gone(client: Client) -> None:
    """Leaves, and the handler's own end never comes."""
    connection = client.send()
    client.await_event("started")
    leave(connection)


def leaves_within_its_body(client: Client) -> None:
    connection = client.send("Content-Length: 100", body=b"the first")
    client.await_event("started")
    leave(connection)


def leaves_a_stream(client: Client) -> None:
    connection = client.send()
    read_until(connection, b"word")
    leave(connection)
    client.open_gate_unless_it_ends()


def stays_gone_from_a_stream(client: Client) -> None:
    connection = client.send()
    read_until(connection, b"word")
    leave(connection)


def stays_gone_and_the_background_runs(client: Client) -> None:
    stays_gone_from_a_stream(client)
    client.await_event("background")


def resets_a_stream(client: Client) -> None:
    connection = client.send()
    read_until(connection, b"word")
    reset(connection)


def half_closes_a_stream(client: Client) -> None:
    connection = client.send()
    read_until(connection, b"word")
    close_half(connection)
    client.open_gate_unless_it_ends(2)
    with suppress(ConnectionResetError):
        read_all(connection)


# ── What ends servers ────────────────────────────────────────────────────────────────────────────────────────────


def terminate(client: Client) -> None:
    client.server.ask_to_stop(signal.SIGTERM)


def terminate_and_let_it_end(client: Client) -> None:
    """The handler ends once the shutdown is under way."""
    client.server.ask_to_stop(signal.SIGTERM)
    _until_it_stops_listening(client)
    client.open_gate()


def interrupt_twice(client: Client) -> None:
    """Ctrl-C, and again."""
    client.server.ask_to_stop(signal.SIGINT)
    _until_it_stops_listening(client)  # two signals in one tick would be one
    with suppress(ProcessLookupError):
        client.server.ask_to_stop(signal.SIGINT)


def kill(client: Client) -> None:
    client.server.kill_worker()


def _until_it_stops_listening(client: Client) -> None:
    """Not all servers do; then a moment has to do."""
    with suppress(AssertionError):
        eventually(lambda: client.server.ended or not client.server.listens, client.server, seconds=0.3)


# ── The table ────────────────────────────────────────────────────────────────────────────────────────────────────

SUCCESS = Row("success", None, 200)

RESPONSES = (
    Ending("a complete response", "answers_200", reads_the_answer, SUCCESS),
    Ending("a response with status 404", "answers_404", reads_the_answer, Row("success", None, 404)),
    Ending("a response with status 503", "answers_503", reads_the_answer, Row("error", "http_error", 503)),
    Ending("an exception before the response", "raises_before", reads_the_answer, Row("error", "exception")),
    Ending("an exception during the response", "raises_during", reads_the_answer, Row("error", "exception", 200)),
    Ending("an exception after the response", "raises_after", reads_the_answer, Row("error", "exception", 200)),
    Ending(
        "an exception that Starlette answers with 500", "starlette_raises", reads_the_answer, Row("error", "exception", 500)
    ),
    Ending(
        "an exception in a background task of Starlette",
        "starlette_background_raises",
        reads_the_answer,
        Row("error", "exception", 200),
    ),
    Ending("no response", "is_silent", reads_the_answer, Row("error", "no_response")),
    Ending("an incomplete response", "stops_short", reads_the_answer, Row("error", "incomplete_response", 200)),
    Ending("cancelled from within", "is_cancelled", reads_the_answer, Row("interrupted", "cancelled")),
    Ending("a time limit in the handler", "has_a_limit", reads_the_answer, Row("timeout", "timeout")),
    Ending(
        "a time limit around the middleware",
        "works",
        reads_the_answer,
        Row("interrupted", "cancelled"),
        configuration="limit",
    ),
)

CLIENTS_THAT_LEAVE = (
    Ending("… while the handler works and does not listen", "works", leaves_while_it_works, SUCCESS),
    Ending("… while the handler listens", "listens", stays_gone, Row("interrupted", "client_disconnected")),
    Ending("… within the request's body", "reads", leaves_within_its_body, Row("interrupted", "client_disconnected")),
    Ending("… while a handler streams and does not listen", "streams", leaves_a_stream, SUCCESS),
    Ending(
        "… while Starlette streams; its background task runs",
        "starlette_streams",
        stays_gone_and_the_background_runs,
        Row("interrupted", "client_disconnected", 200),
    ),
    Ending(
        "… with a reset, while Starlette streams",
        "starlette_streams",
        resets_a_stream,
        Row("interrupted", "client_disconnected", 200),
    ),
    Ending(
        "half closes, while Starlette streams",
        "starlette_streams",
        half_closes_a_stream,
        Row("interrupted", "client_disconnected", 200),
    ),
)

SERVERS_THAT_END = (
    Ending("SIGTERM, and the handler ends in time", "works", waits, SUCCESS, stop=terminate_and_let_it_end),
    Ending(
        "SIGTERM, and the handler takes longer",
        "works",
        waits,
        Row("interrupted", "cancelled"),
        stop=terminate,
        grace=1,
    ),
    Ending("SIGINT twice", "works", waits, Row("interrupted", "cancelled"), stop=interrupt_twice, grace=2),
    Ending("SIGKILL", "works", waits, Row("running"), stop=kill),
)

ENDINGS: Mapping[str, Sequence[Ending]] = {
    "What the application does": RESPONSES,
    "The client leaves": CLIENTS_THAT_LEAVE,
    "The server ends": SERVERS_THAT_END,
}
