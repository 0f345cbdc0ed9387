"""No way around `owner=`: other methods, other calls, other moments."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from skeino import ConfigurationError, InvalidInputError, SkeinoSettings, ThreadNotFoundError, current_run
from skeino_asgi import RunMiddleware, RunTracker
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.asgi.graphs import compiled


def config_of(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


def _of_user(connection: HTTPConnection) -> str | None:
    return connection.headers.get("x-user")


async def _anns_thread(tracker: RunTracker) -> None:
    async with tracker.run(thread_id="anns", owner="ann") as run:
        await compiled(tracker.checkpointer).ainvoke({"words": ["secret"]}, run.config)


async def test_head_finds_another_owners_thread_as_little_as_get(settings: SkeinoSettings) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_run())
        await scope["state"]["checkpointer"].aget_tuple(config_of("anns"))
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings, owner=_of_user)
    async with connected(wrapped) as client:
        await _anns_thread(wrapped.tracker)
        for method in ("HEAD", "GET"):
            refused = await client.request(method, "/", headers={"X-Thread-ID": "anns", "X-User": "bob"})
            assert refused.status_code == 404
            refused = await client.request(method, "/", headers={"X-User": "bob"})
            assert refused.status_code == 500, "the saver refuses it"
            allowed = await client.request(method, "/", headers={"X-Thread-ID": "anns", "X-User": "ann"})
            assert allowed.status_code == 200
        assert seen[1] is None, "HEAD is no run"


async def test_options_asks_for_no_owner_and_finds_nobodys_threads_only(settings: SkeinoSettings) -> None:
    """A browser sends it without credentials, before the request itself: it must not be answered with 401."""
    refused: list[type[Exception]] = []

    def owner(connection: HTTPConnection) -> str:
        raise HTTPException(401)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        saver = scope["state"]["checkpointer"]
        assert await saver.aget_tuple(config_of("nobodys")) is None
        for call in (
            saver.aget_tuple(config_of("anns")),
            saver.aput(config_of("anns"), empty_checkpoint(), {}, {}),
            saver.adelete_thread("anns"),
            anext(saver.alist(None)),
        ):
            try:
                await call
            except (ThreadNotFoundError, InvalidInputError) as exc:
                refused.append(type(exc))
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings, owner=owner)
    async with connected(wrapped) as client:
        await _anns_thread(wrapped.tracker)
        answer = await client.options("/", headers={"X-Thread-ID": "anns"})
        assert answer.status_code == 200
        assert (await client.get("/")).status_code == 401
    assert refused == [ThreadNotFoundError] * 3 + [InvalidInputError]


def test_a_websocket_finds_another_owners_thread_as_little() -> None:
    caught: list[str] = []

    async def talk(websocket: Any) -> None:
        await websocket.accept()
        try:
            await websocket.state.checkpointer.aget_tuple(config_of("anns"))
        except ThreadNotFoundError as exc:
            caught.append(str(exc))
        async with websocket.app.state.tracker.run() as run:  # a run within belongs to the same user
            caught.append(str(run.owner))
        await websocket.close()

    app = Starlette(routes=[WebSocketRoute("/ws", talk)])
    app.state.tracker = tracker = RunTracker(SkeinoSettings())
    app.add_middleware(RunMiddleware, tracker=tracker, owner=_of_user)
    with TestClient(app) as client:
        assert client.portal is not None
        client.portal.call(_anns_thread, tracker)
        with client.websocket_connect("/ws", headers={"X-User": "bob"}) as websocket:
            websocket.receive()
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect("/ws", headers={"X-User": "bob", "X-Thread-ID": "anns"}),
        ):
            raise AssertionError
    assert caught == ["There is no thread 'anns'.", "bob"]


async def test_the_owners_resolver_may_refuse_with_a_status_of_its_own() -> None:
    def owner(connection: HTTPConnection) -> str:
        raise HTTPException(401, "Log in first.", {"WWW-Authenticate": "Bearer"})

    app = RunMiddleware(answering(), settings=SkeinoSettings(), owner=owner, exclude=["/health"])
    async with connected(app) as client:
        for method in ("GET", "HEAD"):
            refused = await client.request(method, "/")
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert (await client.get("/")).json() == {"error": "refused", "detail": "Log in first."}
        assert (await client.get("/health")).status_code == 200
        assert await store_of(app).search_runs() == []


def test_owners_and_serving_without_the_store_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="on_store_error='reject'"):
        RunMiddleware(answering(), settings=SkeinoSettings(on_store_error="untracked"), owner=_of_user)


async def test_a_thread_that_was_not_there_is_looked_for_again(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan(), tracker.run(owner="bob"):
        assert await tracker.checkpointer.aget_tuple(config_of("anns")) is None
        await asyncio.create_task(_as_nobody(_anns_thread(tracker)))
        with pytest.raises(ThreadNotFoundError):
            await tracker.checkpointer.aget_tuple(config_of("anns"))


async def _as_nobody(awaitable: Any) -> None:
    from skeino.runs import current_run_var

    current_run_var.set(None)
    await awaitable


async def test_one_checkpoint_written_to_several_threads_at_once_is_checked_and_stamped_for_each(
    settings: SkeinoSettings,
) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        await _anns_thread(tracker)
        saver, checkpoint = tracker.checkpointer, empty_checkpoint()
        async with tracker.run(owner="bob") as run:
            results = await asyncio.gather(
                *(saver.aput(config_of(one), checkpoint, {}, {}) for one in ("bobs", "anns", "bobs-too", "bobs")),
                return_exceptions=True,
            )
        assert [type(result) for result in results] == [dict, ThreadNotFoundError, dict, dict]
        for thread_id in ("bobs", "bobs-too"):
            written = await saver.aget_tuple(config_of(thread_id))
            assert written is not None
            assert written.metadata["run_id"] == run.run_id
            thread = await tracker.metadata_store.get_thread(thread_id)
            assert thread is not None
            assert thread["owner"] == "bob"


async def test_starting_over_in_one_run_keeps_the_thread_its_owners(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        graph = compiled(tracker.checkpointer)
        async with tracker.run(thread_id="bobs", owner="bob") as run:
            await graph.ainvoke({"words": ["old"]}, run.config)
            await tracker.persistence.delete_thread("bobs")
            await graph.ainvoke({"words": ["new"]}, run.config)
        thread = await tracker.metadata_store.get_thread("bobs")
        assert thread is not None
        assert thread["owner"] == "bob"
        assert [row["run_id"] for row in await tracker.metadata_store.search_runs(thread_id="bobs")] == [run.run_id]
        async with tracker.run(owner="eve"):
            with pytest.raises(ThreadNotFoundError):
                await graph.aget_state(config_of("bobs"))


async def test_a_deleted_thread_does_not_come_back_when_its_run_ends(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        await tracker.metadata_store.create_thread("gone")
        async with tracker.run() as run:
            run.thread_id = "gone"
            await tracker.persistence.delete_thread("gone")
        assert await tracker.metadata_store.get_thread("gone") is None
        assert (await ended(tracker.metadata_store, run.run_id))["thread_id"] is None


async def test_a_detached_task_writes_no_thread_without_an_owner(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        over = asyncio.Event()

        async def later() -> None:
            await over.wait()
            await compiled(tracker.checkpointer).ainvoke({"words": ["late"]}, config_of("later"))

        async with tracker.run(owner="bob") as run:
            task = asyncio.create_task(later())
        over.set()
        await task
        thread = await tracker.metadata_store.get_thread("later")
        assert thread is not None
        assert thread["owner"] == "bob"
        written = await tracker.checkpointer.aget_tuple(config_of("later"))
        assert written is not None
        assert written.metadata["run_id"] == run.run_id


@pytest.mark.postgres
async def test_pruning_and_deleting_by_run_are_guarded_where_a_saver_has_them(postgres_dsn: str) -> None:
    tracker = RunTracker(SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=postgres_dsn))
    async with tracker.lifespan():
        await _anns_thread(tracker)
        async with tracker.run(owner="bob"):
            with pytest.raises(ThreadNotFoundError):
                await tracker.checkpointer.aprune(["anns"], strategy="delete")
        assert await tracker.checkpointer.aget_tuple(config_of("anns")) is not None
        async with tracker.run(owner="ann"):
            await tracker.checkpointer.aprune(["anns"], strategy="delete")
        assert await tracker.checkpointer.aget_tuple(config_of("anns")) is None


async def test_a_synchronous_invoke_on_the_event_loop_does_not_freeze_it() -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        graph = compiled(tracker.checkpointer)
        async with asyncio.timeout(30), tracker.run() as run:
            assert graph.invoke({"words": ["hi"]}, config_of("t"))["words"] == ["hi", "echo hi"]
            graph.invoke({"words": ["hi"]}, config_of("second"))  # which must not make it forget the first
        row = await ended(tracker.metadata_store, run.run_id)
        assert (row["thread_id"], row["checkpoint_count"]) == ("t", 6)
        async with tracker.run(owner="bob"):
            with pytest.raises(InvalidInputError, match="use ainvoke or astream"):
                graph.invoke({"words": ["hi"]}, config_of("unknown"))


async def test_nothing_of_a_run_that_identifies_it_can_be_changed() -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan(), tracker.run() as run:
        for name in ("run_id", "owner", "status", "started_at"):
            with pytest.raises(AttributeError):
                setattr(run, name, "SPOOF")
