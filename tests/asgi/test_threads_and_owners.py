"""Which thread a request belongs to, and whose it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import HTTPConnection

from skeino import ConfigurationError, SkeinoSettings, ThreadNotFoundError
from skeino_asgi import RunMiddleware
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.asgi.graphs import compiled

BAD_IDS = [b"a" * 256, b"", b"  ", b"a\x00b", b"a\x07b", b"\xff\xfe", "a\u2028b".encode(), b"\xed\xa0\x80"]


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_a_bad_thread_id_is_a_400_before_anything_is_written(settings: SkeinoSettings, bad: bytes) -> None:
    app = RunMiddleware(answering(), settings=settings)
    async with connected(app) as client:
        response = await client.post("/", headers={b"X-Thread-ID": bad})
        assert response.status_code == 400
        assert response.json()["error"] == "invalid_input"
        assert await store_of(app).search_runs() == []
        assert await store_of(app).search_threads() == []
        good = await client.post("/", headers={"X-Thread-ID": "good"})
        assert (await ended(store_of(app), good.headers["x-run-id"]))["thread_id"] == "good"


async def test_a_thread_id_may_be_any_printable_text(settings: SkeinoSettings) -> None:
    wanted = "Straße 東京 'quoted' \"$where\" {x} %s 100%"
    app = RunMiddleware(answering(), settings=settings)
    async with connected(app) as client:
        response = await client.post("/", headers={b"X-Thread-ID": wanted.encode()})
        assert (await ended(store_of(app), response.headers["x-run-id"]))["thread_id"] == wanted


async def test_the_header_twice_is_refused() -> None:
    app = RunMiddleware(answering(), settings=SkeinoSettings())
    async with connected(app) as client:
        response = await client.post("/", headers=[("X-Thread-ID", "a"), ("X-Thread-ID", "b")])
        assert response.status_code == 400


@pytest.mark.parametrize(
    ("path", "root", "thread"),
    [
        ("/threads/t1", "", "t1"),
        ("/threads/t1/messages", "", "t1"),
        ("/threads/with%20space", "", "with space"),
        ("/api/threads/t1", "/api", "t1"),
        ("/threads", "", "from-header"),
        ("/threads/", "", "from-header"),
        ("/thread/t1", "", "from-header"),
    ],
)
async def test_the_path_names_the_thread_below_the_root_path(path: str, root: str, thread: str) -> None:
    app = RunMiddleware(answering(), settings=SkeinoSettings(), thread_path="/threads/{thread_id}")

    async def below_root(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": root} if scope["type"] == "http" else scope, receive, send)

    async with connected(below_root) as client:
        response = await client.post(path, headers={"X-Thread-ID": "from-header"})
        assert (await ended(store_of(app), response.headers["x-run-id"]))["thread_id"] == thread


async def test_a_callable_finds_the_thread_and_may_be_async() -> None:
    async def find(connection: HTTPConnection) -> str | None:
        return connection.query_params.get("thread")

    app = RunMiddleware(answering(), settings=SkeinoSettings(), thread_id=find)
    async with connected(app) as client:
        response = await client.post("/?thread=t9", headers={"X-Thread-ID": "ignored"})
        assert (await ended(store_of(app), response.headers["x-run-id"]))["thread_id"] == "t9"
        response = await client.post("/")
        assert (await ended(store_of(app), response.headers["x-run-id"]))["thread_id"] is None


@pytest.mark.parametrize(
    "template",
    [
        "threads/{thread_id}",
        "/threads",
        "/{thread_id}/{thread_id}",
        "/x/{user:str}/{thread_id}",
        "/x/{user-id}/{thread_id}",
        "/x/{a}/{a}/{thread_id}",
        "/x/{1}/{thread_id}",
        "/x/{/{thread_id}",
    ],
)
def test_a_path_template_that_cannot_work_is_refused(template: str) -> None:
    with pytest.raises(ConfigurationError, match="thread_path"):
        RunMiddleware(answering(), settings=SkeinoSettings(), thread_path=template)


def _of_user(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "PUT"])
async def test_another_owners_thread_is_not_found(settings: SkeinoSettings, method: str) -> None:
    app = RunMiddleware(answering(), settings=settings, owner=_of_user)
    async with connected(app) as client:
        mine = await client.post("/", headers={"X-Thread-ID": "t1", "X-User": "alice"})
        row = await ended(store_of(app), mine.headers["x-run-id"])
        assert (row["owner"], row["thread_id"]) == ("alice", "t1")
        for user in ({"X-User": "bob"}, {}):
            theirs = await client.request(method, "/", headers={"X-Thread-ID": "t1", **user})
            assert theirs.status_code == 404
            assert theirs.json() == {"error": "thread_not_found", "detail": "There is no such thread."}
        assert len(await store_of(app).search_runs()) == 1
        again = await client.request(method, "/", headers={"X-Thread-ID": "t1", "X-User": "alice"})
        assert again.status_code == 200


async def test_another_owners_thread_is_not_found_by_the_graph_either(settings: SkeinoSettings) -> None:
    failures: list[type[BaseException]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        state = scope["state"]
        config: Any = {"configurable": {"thread_id": "alices"}}
        graph = compiled(state["checkpointer"])
        attempts: tuple[Callable[[], Any], ...] = (
            lambda: graph.ainvoke({"words": ["hi"]}, config),
            lambda: graph.aget_state(config),
            lambda: state["checkpointer"].adelete_thread("alices"),
            lambda: anext(state["checkpointer"].alist(config)),
            lambda: state["persistence"].delete_thread("alices"),
        )
        for attempt in attempts:
            try:
                await attempt()
            except ThreadNotFoundError as exc:
                failures.append(type(exc))
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings, owner=_of_user)
    async with connected(wrapped) as client:
        async with wrapped.tracker.run(thread_id="alices", owner="alice") as run:
            await compiled(wrapped.tracker.checkpointer).ainvoke({"words": ["hi"]}, run.config)
        response = await client.post("/", headers={"X-User": "bob"})
        assert failures == [ThreadNotFoundError] * 5
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] is None
        async with wrapped.tracker.run(thread_id="alices", owner="alice") as run:
            state = await compiled(wrapped.tracker.checkpointer).aget_state(run.config)
        assert state.values["words"] == ["hi", "echo hi"]


@pytest.mark.parametrize("argument", ["owner", "thread_id"])
async def test_what_is_no_name_is_the_applications_mistake_and_no_clients(argument: str) -> None:
    options: dict[str, Any] = {argument: lambda connection: 5}
    wrapped = RunMiddleware(answering(), settings=SkeinoSettings(), **options)
    async with connected(wrapped) as client:
        assert (await client.post("/")).status_code == 500
        with pytest.raises(ConfigurationError, match=f"{argument}= must give a string or None, not int"):
            await wrapped({"type": "http", "method": "POST", "path": "/", "headers": [], "state": {}}, None, None)


async def test_the_graph_reports_the_missing_thread_of_a_run_without_config() -> None:
    from skeino import InvalidInputError

    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        checkpointer = scope["state"]["checkpointer"]
        configs: list[Any] = [
            {},
            {"configurable": {}},
            {"configurable": {"thread_id": None}},
            {"configurable": {"thread_id": 7}},
        ]
        for config in configs:
            with pytest.raises(InvalidInputError) as caught:
                await checkpointer.aget_tuple(config)
            seen.append(str(caught.value))
        await answering()(scope, receive, send)

    async with connected(RunMiddleware(app, settings=SkeinoSettings())) as client:
        assert (await client.post("/")).status_code == 200
    assert seen[0].startswith("The graph's config has no thread_id")
    assert seen[-1] == "thread_id must be a string, not int."


@pytest.mark.parametrize("path", ["/threads/threads/t1/chat", "/threads/t1/chat"])
async def test_a_path_that_a_framework_has_taken_the_root_off_is_not_shortened_again(path: str) -> None:
    """Litestar does that before its middlewares see it; the raw path is whole."""
    app = RunMiddleware(answering(), settings=SkeinoSettings(), thread_path="/threads/{thread_id}")
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "root_path": "/threads",
        "raw_path": b"/threads/threads/t1/chat",
        "headers": [],
    }

    async def send(message: Any) -> None:
        pass

    async with app.tracker.lifespan():
        await app(scope, asyncio.Queue[Any]().get, send)
        (run,) = await store_of(app).search_runs()
    assert (run["thread_id"], run["kwargs"]["path"]) == ("t1", "/threads/t1/chat")
