"""What the middleware leaves as it was: scopes, messages, nesting, excluded paths, WebSockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient

from skeino import ConfigurationError, SkeinoSettings, current_run
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans
from tests.asgi.conftest import answering, connected, store_of
from tests.http_client import httpx


@pytest.mark.parametrize(
    ("exclude", "path", "tracked"),
    [
        (["/health"], "/health", False),
        (["/health"], "/healthy", True),
        (["/static/*"], "/static/app.js", False),
        (["/static/*"], "/static", True),
        (lambda scope: scope["path"].endswith(".css"), "/a.css", False),
        (lambda scope: scope["path"].endswith(".css"), "/a.html", True),
    ],
)
async def test_excluded_paths_have_state_and_no_run(exclude: Any, path: str, tracked: bool) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope["state"]["run"], current_run(), scope["state"]["checkpointer"]))
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings(), exclude=exclude)
    async with connected(wrapped) as client:
        response = await client.get(path)
        assert ("x-run-id" in response.headers) is tracked
        assert len(await store_of(wrapped).search_runs()) == tracked
    (run, current, checkpointer) = seen[0]
    assert run is current
    assert (run is not None) is tracked
    assert checkpointer is not None


async def test_only_included_paths_are_tracked() -> None:
    wrapped = RunMiddleware(answering(), settings=SkeinoSettings(), include=["/api/*"], exclude=["/api/health"])
    async with connected(wrapped) as client:
        tracked = [path for path in ("/", "/api/x", "/api/health") if "x-run-id" in (await client.get(path)).headers]
    assert tracked == ["/api/x"]


@pytest.mark.parametrize("choice", ["/health", ["health"], ["/docs*"], ["*"], ["/*/x"], ["/**"], ["/a*/*"]])
def test_paths_that_cannot_match_are_refused(choice: Any) -> None:
    with pytest.raises(ConfigurationError, match="exclude"):
        RunMiddleware(answering(), settings=SkeinoSettings(), exclude=choice)


def test_settings_and_a_tracker_contradict_each_other() -> None:
    for wrong, message in (
        ({"settings": "sqlite"}, "settings must be SkeinoSettings, not str"),
        ({"tracker": SkeinoSettings()}, "tracker must be a RunTracker, not SkeinoSettings"),
        ({"owner": "x-user"}, "owner must be a callable that takes an HTTPConnection, not str"),
        ({"thread_id": "t1"}, "thread_id must be a callable"),
        ({"claim": True}, "claim must be a collection of paths"),
    ):
        arguments: Any = wrong
        with pytest.raises(ConfigurationError, match=message):
            RunMiddleware(answering(), **arguments)
    with pytest.raises(ConfigurationError, match="not both"):
        RunMiddleware(answering(), settings=SkeinoSettings(), tracker=RunTracker(SkeinoSettings()))


async def test_the_scope_stays_the_same_object_and_its_state_is_a_copy() -> None:
    outer: dict[str, Any] = {}
    shared = {"mine": 1}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope is outer["scope"]
        scope["route"] = "found"
        assert scope["state"]["mine"] == 1
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings())

    async def outside(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            outer["scope"] = scope
            scope["state"] = shared
        await wrapped(scope, receive, send)

    async with connected(outside) as client:
        assert (await client.get("/")).status_code == 200
    assert outer["scope"]["route"] == "found"
    assert shared == {"mine": 1}


async def test_a_reused_start_message_is_not_changed() -> None:
    message = {"type": "http.response.start", "status": 200}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(message)
        await send({"type": "http.response.body"})

    async with connected(RunMiddleware(app, settings=SkeinoSettings())) as client:
        first, second = await client.get("/"), await client.get("/")
    assert first.headers["x-run-id"] != second.headers["x-run-id"]
    assert message == {"type": "http.response.start", "status": 200}


async def test_wrapped_twice_a_request_is_one_run() -> None:
    settings = SkeinoSettings()
    inner = RunMiddleware(answering(), settings=settings)
    outer = RunMiddleware(inner, settings=settings)
    async with connected(outer) as client:
        response = await client.post("/")
        assert len(response.headers.get_list("x-run-id")) == 1
        assert len(await store_of(outer).search_runs()) == 1
        assert await store_of(inner).search_runs() == []


@pytest.mark.parametrize("outside", [{}, {"exclude": ["/api/*"]}])
async def test_owners_that_an_outer_one_would_pass_by_are_asked_or_refused(outside: Any) -> None:
    tracker = RunTracker(SkeinoSettings())
    inner = RunMiddleware(answering(), tracker=tracker, owner=lambda connection: connection.headers["x-user"])
    async with connected(RunMiddleware(inner, tracker=tracker, **outside)) as client:
        await tracker.metadata_store.create_thread("adas", owner="ada")
        thread_id = "adas" if outside else "nobodys"
        refused = await client.post("/api/chat", headers={"X-Thread-ID": thread_id, "X-User": "bob"})
    assert refused.status_code == (404 if outside else 500)


async def test_one_within_another_that_has_other_settings_is_refused(tmp_path: Path) -> None:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    app = RunMiddleware(RunMiddleware(answering(), settings=settings), settings=SkeinoSettings())
    async with app.tracker.lifespan():
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            with pytest.raises(ConfigurationError, match="other settings"):
                await client.post("/")


def test_natively_and_wrapped_in_starlette_it_opens_once() -> None:
    opened: list[object] = []
    tracker = RunTracker(SkeinoSettings())

    async def endpoint(request: Any) -> PlainTextResponse:
        opened.append(request.state.checkpointer)
        return PlainTextResponse(request.state.run.run_id + request.state.label)

    async def lifespan_of_mine(app: Any) -> Any:
        opened.append(tracker.checkpointer)
        yield {"label": "-mine"}

    from contextlib import asynccontextmanager

    app = Starlette(
        routes=[Mount("/sub", routes=[Route("/", endpoint, methods=["POST"])])],
        lifespan=combine_lifespans(tracker.lifespan, asynccontextmanager(lifespan_of_mine)),
    )
    app.add_middleware(RunMiddleware, tracker=tracker)
    with TestClient(app) as client:
        response = client.post("/sub/")
        assert response.text == response.headers["x-run-id"] + "-mine"
    assert opened[0] is opened[1]


def test_a_websocket_has_state_and_no_run() -> None:
    seen: list[Any] = []

    async def talk(websocket: Any) -> None:
        await websocket.accept()
        seen.append((websocket.state.run, current_run()))
        tracker: RunTracker = websocket.app.state.tracker
        async with tracker.run(thread_id="t1") as run:
            assert current_run() == run
            await websocket.send_text(run.run_id)
        assert current_run() is None
        seen.append(await websocket.state.metadata_store.get_run(run.run_id))
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws", talk)])
    app.state.tracker = RunTracker(SkeinoSettings())
    app.add_middleware(RunMiddleware, tracker=app.state.tracker)
    with TestClient(app) as client, client.websocket_connect("/ws") as websocket:
        run_id = websocket.receive_text()
        websocket.receive()
    assert seen[0] == (None, None)
    assert (seen[1]["run_id"], seen[1]["status"], seen[1]["thread_id"]) == (run_id, "success", "t1")


def test_two_applications_in_one_process_keep_to_themselves() -> None:
    one = RunMiddleware(answering(), settings=SkeinoSettings())
    two = RunMiddleware(answering(), settings=SkeinoSettings())
    with TestClient(one) as first, TestClient(two) as second:
        first.post("/")
        first.post("/")
        second.post("/")
        assert first.portal is not None
        assert second.portal is not None

        async def count(app: RunMiddleware) -> int:
            return len(await store_of(app).search_runs())

        assert first.portal.call(count, one) == 2
        assert second.portal.call(count, two) == 1
