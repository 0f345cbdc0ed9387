"""The table: each ending of a request, what its client and its server do, and what the run's row says afterwards."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field

from tests.endings.client import (
    Client,
    close_half,
    leave,
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
    elsewhere: Row | None = None
    """What another release of the server may show: what it does is its own affair, and nothing it promises."""


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
    _: KW_ONLY
    stop: Callable[[Client], None] | None = None
    """What ends the server; None where it lives on."""
    grace: int = 10
    """Seconds that the server gives requests at its end."""
    deviations: Mapping[Server, Deviation] = field(default_factory=dict)
    servers: Sequence[Server] = SERVERS
    lifespan: bool = True
    more: Sequence[str] = ()
    """Options of the server for this ending alone, which has a process of its own then."""

    shown: str | None = None
    """What the page says, where one row does not say it."""

    @property
    def leaves_the_server_alone(self) -> bool:
        """Whether one process will do for this ending and others."""
        return self.stop is None and not self.more

    def rows_on(self, server: Server) -> list[Row]:
        """What may be: one row, or two, where it hangs on the server's release."""
        deviation = self.deviations.get(server)
        return [
            self.row_on(server),
            *([] if deviation is None or deviation.elsewhere is None else [deviation.elsewhere]),
        ]

    def row_on(self, server: Server) -> Row:
        return self.deviations[server].row if server in self.deviations else self.row


# ── What clients do ──────────────────────────────────────────────────────────────────────────────────────────────


def asks(client: Client) -> None:
    """And stays: not every server closes a connection whose request went wrong."""
    client.send()


def waits(client: Client) -> None:
    """For an answer, while the server is being ended."""
    client.send()
    client.await_start()


def leaves_while_it_works(client: Client) -> None:
    connection = client.send()
    client.await_start()
    leave(connection)
    client.open_gate_unless_it_ends()


def stays_gone(client: Client) -> None:
    """Leaves, and the handler's own end never comes."""
    connection = client.send()
    client.await_start()
    leave(connection)


def leaves_within_its_body(client: Client) -> None:
    connection = client.send("Content-Length: 100", body=b"the first")
    client.await_start()
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


def leaves_with_a_large_body(client: Client) -> None:
    """More than servers and the middleware read ahead."""
    connection = client.send("Content-Length: 8000000")
    connection.setblocking(False)
    with suppress(BlockingIOError):  # nobody reads it any more
        for _ in range(100):
            connection.send(b"x" * 65536)
    client.await_start()
    leave(connection)
    client.open_gate_unless_it_ends()
    if client.reaches_the_handler:
        client.await_event("answers")


def leaves_with_a_body_that_nobody_reads(client: Client) -> None:
    connection = client.send(body=b"x" * 10_000)
    client.await_start()
    leave(connection)


# ── WebSockets ───────────────────────────────────────────────────────────────────────────────────────────────────


def upgrades(client: Client) -> None:
    client.upgrade()


def says_goodbye(client: Client) -> None:
    websocket = client.websocket()
    websocket.send("hello")
    assert websocket.recv() == "hello"
    websocket.close()


def vanishes(client: Client) -> None:
    connection = client.upgrade()
    client.await_start()
    leave(connection)


def stays_connected(client: Client) -> None:
    client.websocket()
    client.await_start()


def reads_the_state(client: Client) -> None:
    assert json.loads(client.websocket().recv()) == {"run": None, "checkpointer": True}


def sends_two_messages(client: Client) -> None:
    websocket = client.websocket()
    for message, row in (("answer", Row("success")), ("fail", Row("error", "exception"))):
        websocket.send(message)
        assert websocket.recv() == "done"
        assert [Row(*one) for one in client.rows(f"/{message}")] == [row]  # an end is written before its block is left


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
CANCELLED = Row("interrupted", "cancelled")
GONE = Row("interrupted", "client_disconnected")
GONE_FROM_A_RESPONSE = Row("interrupted", "client_disconnected", 200)
NO_RUN = Row(None)

WAITS_FOR_THE_BODY = Deviation(
    NO_RUN, "daphne calls the application once the request's body is there: nothing has begun, so there is no run."
)
CANCELS_AT_ONCE = Deviation(CANCELLED, "daphne gives no grace: at SIGTERM it cancels what is at work.")
KILLS = Deviation(
    Row("running"),
    "granian waits for its requests for as long as `--workers-kill-timeout` says, and then kills the worker by "
    "SIGKILL: nobody is left who could write. Without that option it waits for ever.",
)

RESPONSES = (
    Ending("a complete response", "answers_200", asks, SUCCESS),
    Ending("a response with status 404", "answers_404", asks, Row("success", None, 404)),
    Ending("a response with status 503", "answers_503", asks, Row("error", "http_error", 503)),
    Ending("an exception before the response", "raises_before", asks, Row("error", "exception")),
    Ending("an exception during the response", "raises_during", asks, Row("error", "exception", 200)),
    Ending("an exception after the response", "raises_after", asks, Row("error", "exception", 200)),
    Ending("an exception that Starlette answers with 500", "starlette_raises", asks, Row("error", "exception", 500)),
    Ending(
        "an exception in a background task of Starlette",
        "starlette_background_raises",
        asks,
        Row("error", "exception", 200),
    ),
    Ending("no response", "is_silent", asks, Row("error", "no_response")),
    Ending("an incomplete response", "stops_short", asks, Row("error", "incomplete_response", 200)),
    Ending("cancelled from within", "is_cancelled", asks, CANCELLED),
    Ending("`asyncio.timeout` in the handler", "has_a_limit", asks, Row("timeout", "timeout")),
    Ending("`asyncio.timeout` around the middleware", "works", asks, CANCELLED, "limit"),
)

CLIENTS_THAT_LEAVE = (
    Ending("while the handler works and does not listen", "works", leaves_while_it_works, SUCCESS),
    Ending("while the handler listens, in `receive()`", "listens", stays_gone, GONE),
    Ending(
        "in the middle of the request's body",
        "reads",
        leaves_within_its_body,
        GONE,
        deviations={DAPHNE: WAITS_FOR_THE_BODY},
    ),
    Ending("while a bare application streams and does not listen", "streams", leaves_a_stream, SUCCESS),
    Ending(
        "while Starlette streams; its background task still runs",
        "starlette_streams",
        stays_gone_and_the_background_runs,
        GONE_FROM_A_RESPONSE,
    ),
    Ending("by a reset, while Starlette streams", "starlette_streams", resets_a_stream, GONE_FROM_A_RESPONSE),
    Ending(
        "by closing its half, while Starlette streams", "starlette_streams", half_closes_a_stream, GONE_FROM_A_RESPONSE
    ),
)

CLIENTS_WHOSE_LEAVING_CANCELS = (
    Ending("while the handler works and does not listen", "works", stays_gone, GONE, "cancel"),
    Ending("… with a body that the handler never reads", "works", leaves_with_a_body_that_nobody_reads, GONE, "cancel"),
    Ending(
        "… in the middle of a body that is larger than what is read ahead",
        "works",
        leaves_with_a_large_body,
        SUCCESS,
        "cancel",
        stop=terminate,
        grace=3,
        deviations={
            HYPERCORN: Deviation(
                Row("interrupted", "cancelled", 200),
                "hypercorn, with a body that nobody reads, does not notice that the client is gone, and the handler "
                "waits in `send()` until the server ends.",
            ),
            DAPHNE: WAITS_FOR_THE_BODY,
        },
    ),
    Ending("while the handler listens, in `receive()`", "listens", stays_gone, GONE, "cancel"),
    Ending(
        "while a bare application streams and does not listen",
        "streams",
        stays_gone_from_a_stream,
        GONE_FROM_A_RESPONSE,
        "cancel",
    ),
    Ending("while Starlette streams", "starlette_streams", stays_gone_from_a_stream, GONE_FROM_A_RESPONSE, "cancel"),
)

SERVERS_THAT_END = (
    Ending(
        "SIGTERM, and the handler ends within the grace",
        "works",
        waits,
        SUCCESS,
        stop=terminate_and_let_it_end,
        deviations={DAPHNE: CANCELS_AT_ONCE},
    ),
    Ending(
        "SIGTERM, and the grace expires",
        "works",
        waits,
        CANCELLED,
        stop=terminate,
        grace=1,
        deviations={GRANIAN: KILLS},
    ),
    Ending(
        "SIGINT twice (Ctrl-C, Ctrl-C)",
        "works",
        waits,
        CANCELLED,
        stop=interrupt_twice,
        grace=2,
        deviations={GRANIAN: KILLS},
    ),
    Ending(
        "without lifespan: SIGTERM, and the handler ends within the grace",
        "works",
        waits,
        SUCCESS,
        stop=terminate_and_let_it_end,
        grace=3,
        lifespan=False,
        deviations={DAPHNE: CANCELS_AT_ONCE},
    ),
    Ending(
        "without lifespan: SIGTERM, and the grace expires",
        "works",
        waits,
        CANCELLED,
        stop=terminate,
        grace=1,
        lifespan=False,
        deviations={
            GRANIAN: KILLS,
            **dict.fromkeys(
                (UVICORN, UVLOOP),
                Deviation(
                    Row("running"),
                    "uvicorn cancels the request and then sends itself SIGTERM again, which ends the process in the "
                    "middle of its event loop. With its lifespan it waits before, until the ends of runs are written.",
                    elsewhere=CANCELLED,
                ),
            ),
        },
    ),
    Ending("the worker's process gets SIGKILL", "works", waits, Row("running"), stop=kill),
)

LIMITS_OF_SERVERS = (
    Ending(
        "`--http-timeout` expires, the handler listens",
        "listens",
        waits,
        GONE,
        servers=(DAPHNE,),
        more=("--http-timeout", "1"),
    ),
    Ending(
        "`--http-timeout` expires, then `--application-close-timeout`; the handler does not listen",
        "works",
        waits,
        CANCELLED,
        servers=(DAPHNE,),
        more=("--http-timeout", "1", "--application-close-timeout", "1"),
    ),
    Ending(
        "the client leaves, and the handler works for longer than `--application-close-timeout`",
        "works",
        stays_gone,
        CANCELLED,
        servers=(DAPHNE,),
        more=("--application-close-timeout", "1"),
    ),
)

WEBSOCKETS = (
    Ending("the client closes it", "websocket_echoes", says_goodbye, Row("success"), "websockets"),
    Ending("the client vanishes, without a close frame", "websocket_echoes", vanishes, Row("success"), "websockets"),
    Ending("the application closes it with 1000", "websocket_closes_1000", upgrades, Row("success"), "websockets"),
    Ending(
        "the application closes it with 1011",
        "websocket_closes_1011",
        upgrades,
        Row("error", "websocket_error"),
        "websockets",
        deviations={
            DAPHNE: Deviation(
                Row("error", "exception"),
                "daphne raises in `send()`: of the codes below 3000 it lets applications use 1000 alone.",
            )
        },
    ),
    Ending("the application rejects it", "websocket_rejects", upgrades, Row("success"), "websockets"),
    Ending("the application raises", "websocket_raises", upgrades, Row("error", "exception"), "websockets"),
    Ending(
        "the application returns, neither accepting nor closing",
        "websocket_is_silent",
        upgrades,
        Row("error", "no_response"),
        "websockets",
    ),
    Ending(
        "SIGTERM while it is open",
        "websocket_echoes",
        stays_connected,
        Row("interrupted", "shutdown"),
        "websockets",
        stop=terminate,
        grace=2,
        deviations={
            HYPERCORN: Deviation(
                CANCELLED, "hypercorn leaves it open until the grace has expired, and then cancels its handler."
            ),
            GRANIAN: Deviation(
                Row("success"),
                "granian closes it with 1005, which is what it says of clients that leave, too.",
                elsewhere=Row("interrupted", "shutdown"),
            ),
            DAPHNE: Deviation(
                Row("success"),
                "daphne drops it with 1006, which is what it says of clients that vanish, too.",
                elsewhere=Row("interrupted", "cancelled"),
            ),
        },
    ),
)

UNTRACKED_WEBSOCKETS = (
    Ending("a connection: its handler has the state", "websocket_tells_its_state", reads_the_state, NO_RUN),
    Ending(
        "`tracker.run()` around each message",
        "websocket_runs",
        sends_two_messages,
        NO_RUN,
        shown="a run for each message",
    ),
)

ENDINGS: Mapping[str, Sequence[Ending]] = {
    "What the application does": RESPONSES,
    "The client leaves": CLIENTS_THAT_LEAVE,
    'The client leaves, with `on_disconnect="cancel"`': CLIENTS_WHOSE_LEAVING_CANCELS,
    "The server ends": SERVERS_THAT_END,
    "The server has a time limit of its own": LIMITS_OF_SERVERS,
    "WebSockets, with `track_websockets=True`": WEBSOCKETS,
    "WebSockets, without": UNTRACKED_WEBSOCKETS,
}
