"""`on_disconnect="cancel"`: nobody works for a client that has left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from skeino import ConfigurationError, SkeinoSettings
from skeino_asgi import RunMiddleware
from skeino_asgi.disconnect import READ_AHEAD
from tests.asgi.conftest import answering, ended

App = Callable[[Any, Any, Any], Coroutine[Any, Any, None]]

BODY = b"x" * 1000

outer: ContextVar[str] = ContextVar("outer", default="none")


class Client:
    """What a server is to an application: it sends a body in pieces, and may leave at any moment."""

    def __init__(self, *pieces: bytes) -> None:
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.received: list[Any] = []
        self.asked = 0
        for piece in pieces:
            self.inbox.put_nowait({"type": "http.request", "body": piece, "more_body": True})
        self.inbox.put_nowait({"type": "http.request", "body": b"", "more_body": False})

    def leave(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def receive(self) -> Any:
        self.asked += 1
        message = await self.inbox.get()
        if isinstance(message, Exception):
            raise message
        return message

    async def send(self, message: Any) -> None:
        self.received.append(message)

    @property
    def run_id(self) -> str:
        return str(dict(self.received[0]["headers"])[b"x-run-id"].decode())


def scope() -> dict[str, Any]:
    return {"type": "http", "method": "POST", "path": "/", "headers": [], "state": {}}


async def run_of(wrapped: RunMiddleware) -> Any:
    store = wrapped.tracker.metadata_store
    return await ended(store, (await store.search_runs(limit=1))[0]["run_id"])


async def test_the_work_is_cancelled_when_the_client_leaves(settings: SkeinoSettings) -> None:
    working, cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        working.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    wrapped = RunMiddleware(app, settings=settings, on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client(BODY)
        request = asyncio.create_task(wrapped(scope(), client.receive, client.send))
        await working.wait()
        client.leave()
        await asyncio.wait_for(request, 5)  # returns: the cancellation ends in the middleware
        assert cancelled.is_set()
        assert request.cancelling() == 0
        row = await run_of(wrapped)
    assert (row["status"], row["error"]["code"]) == ("interrupted", "client_disconnected")


async def test_by_default_the_work_goes_on() -> None:
    working, go = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        working.set()
        await go.wait()
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings())
    async with wrapped.tracker.lifespan():
        client = Client()
        request = asyncio.create_task(wrapped(scope(), client.receive, client.send))
        await working.wait()
        client.leave()
        go.set()
        await request
        assert (await run_of(wrapped))["status"] == "success"


async def test_a_body_arrives_whole_and_in_order_and_is_not_read_far_ahead() -> None:
    pieces = [bytes([number]) * (READ_AHEAD // 4) for number in range(40)]
    asked_before_the_first = 0
    got: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal asked_before_the_first
        await asyncio.sleep(0.05)
        asked_before_the_first = client.asked
        while (message := await receive())["more_body"]:
            got.append(message["body"])
            await asyncio.sleep(0)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client(*pieces)
        await asyncio.wait_for(wrapped(scope(), client.receive, client.send), 5)
    assert got == pieces
    assert asked_before_the_first <= 5


async def test_the_application_hears_of_the_disconnect_as_often_as_it_asks() -> None:
    heard: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            while True:
                heard.append((await receive())["type"])
        except asyncio.CancelledError:
            heard.append((await receive())["type"])
            heard.append((await receive())["type"])
            raise

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        client.leave()
        await asyncio.wait_for(wrapped(scope(), client.receive, client.send), 5)
    assert heard[0] == "http.request"
    assert set(heard[1:]) == {"http.disconnect"}


async def test_an_error_of_the_server_reaches_the_application() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(ConnectionError, match="the socket broke"):
            await receive()
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        client.inbox.put_nowait(ConnectionError("the socket broke"))
        await asyncio.wait_for(wrapped(scope(), client.receive, client.send), 5)
        assert (await run_of(wrapped))["status"] == "success"


async def test_work_that_will_not_be_cancelled_is_a_success_if_its_response_is_complete() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        client.leave()
        request = asyncio.create_task(wrapped(scope(), client.receive, client.send))
        await asyncio.wait_for(request, 5)
        assert request.cancelling() == 0
        assert (await run_of(wrapped))["status"] == "success"


async def test_a_cancellation_from_outside_is_passed_on_though_the_client_left_as_well() -> None:
    ending = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ending.set()
            await asyncio.sleep(60)  # long enough for the second cancellation

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        request = asyncio.create_task(wrapped(scope(), client.receive, client.send))
        client.leave()
        await asyncio.wait_for(ending.wait(), 5)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert (await run_of(wrapped))["status"] == "interrupted"


async def test_a_time_limit_around_the_application_works_as_before() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(60)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await wrapped(scope(), client.receive, client.send)
        row = await run_of(wrapped)
    assert (row["status"], row["error"]["code"]) == ("interrupted", "cancelled")


async def test_a_client_that_leaves_after_the_last_message_was_sent_cancels_no_background_task() -> None:
    done = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await answering()(scope, receive, send)
        await asyncio.sleep(0.05)
        done.set()

    class Early(Client):
        async def send(self, message: Any) -> None:
            if message["type"] == "http.response.body":
                self.leave()  # some servers say so before they return from the last `send`
                await asyncio.sleep(0.01)
            await super().send(message)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Early()
        await asyncio.wait_for(wrapped(scope(), client.receive, client.send), 5)
        assert done.is_set()
        assert (await run_of(wrapped))["status"] == "success"


@pytest.mark.parametrize("inside", [True, False])
async def test_it_works_around_and_within_starlettes_base_http_middleware(inside: bool) -> None:
    """Which runs the rest of the application in a task group of its own."""
    working, cancelled = asyncio.Event(), asyncio.Event()

    async def endpoint(request: Any) -> Any:
        working.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return PlainTextResponse("")

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    app = Starlette(routes=[Route("/", endpoint, methods=["POST"])])
    wrapped: RunMiddleware
    if inside:
        wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
        outermost: App = BaseHTTPMiddleware(wrapped, dispatch=passing)
    else:
        app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
        outermost = wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client(BODY)
        request = asyncio.create_task(outermost({**scope(), "query_string": b""}, client.receive, client.send))
        await working.wait()
        client.leave()
        with_error = await asyncio.wait_for(asyncio.gather(request, return_exceptions=True), 5)
        assert cancelled.is_set(), with_error
        row = await run_of(wrapped)
    assert (row["status"], row["error"]["code"]) == ("interrupted", "client_disconnected")


@pytest.mark.parametrize("option", [{"on_disconnect": "rollback"}, {"record": "never"}])
def test_other_words_are_refused(option: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        RunMiddleware(answering(), settings=SkeinoSettings(), **option)


async def test_whatever_a_cancelled_application_raises_its_client_has_left() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise RuntimeError("the model was cut off") from None

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        client.leave()
        with pytest.raises(RuntimeError, match="cut off"):
            await asyncio.wait_for(wrapped(scope(), client.receive, client.send), 5)
        row = await run_of(wrapped)
    assert (row["status"], row["error"]["code"]) == ("interrupted", "client_disconnected")


async def test_empty_messages_are_not_read_without_end() -> None:
    go = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client(*[b""] * 10_000)
        request = asyncio.create_task(wrapped(scope(), client.receive, client.send))
        await asyncio.sleep(0.05)
        assert client.asked < 200
        go.set()
        await asyncio.wait_for(request, 5)


async def test_a_task_that_still_listens_when_the_request_has_ended_asks_the_server() -> None:
    heard: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

        async def listen() -> None:
            heard.append(await receive())

        tasks.append(asyncio.create_task(listen()))
        await asyncio.sleep(0)
        await answering()(scope, receive, send)

    tasks: list[asyncio.Task[None]] = []
    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client()
        await asyncio.wait_for(wrapped(scope(), client.receive, client.send), 5)
        client.leave()
        await asyncio.wait_for(tasks[-1], 5)
    assert heard == [{"type": "http.disconnect"}]


async def test_a_client_that_expects_to_be_told_to_continue_is_told_so_by_the_application() -> None:
    asked: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.01)
        asked.append(client.asked)
        await answering(417)(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Client(BODY)
        await wrapped({**scope(), "headers": [(b"expect", b"100-continue")]}, client.receive, client.send)
    assert asked == [0]


async def test_an_outer_middlewares_receive_has_the_requests_context() -> None:
    seen: list[str] = []
    token = outer.set("mine")

    class Reading(Client):
        async def receive(self) -> Any:
            seen.append(outer.get())
            return await super().receive()

    wrapped = RunMiddleware(answering(), settings=SkeinoSettings(), on_disconnect="cancel")
    async with wrapped.tracker.lifespan():
        client = Reading()
        await wrapped(scope(), client.receive, client.send)
        await asyncio.sleep(0)
    outer.reset(token)
    assert set(seen) <= {"mine"}
