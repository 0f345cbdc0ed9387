"""`record="on_use"`: a request that touches neither its run nor the checkpointer leaves no row."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from skeino import ConfigurationError, InvalidInputError, SkeinoSettings, StoreUnavailableError, current_run
from skeino.persistence import RunRow, open_persistence
from skeino.testing import everything
from skeino_asgi import RunMiddleware
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.asgi.graphs import compiled
from tests.http_client import httpx


def wrapping(app: Any, settings: SkeinoSettings, **options: Any) -> RunMiddleware:
    return RunMiddleware(app, settings=settings, record="on_use", **options)


async def written(app: RunMiddleware, run_id: str) -> RunRow:
    """The row of a run that is written at its end only."""
    async with asyncio.timeout(10):
        while await store_of(app).get_run(run_id) is None:
            await asyncio.sleep(0.005)
    return await ended(store_of(app), run_id)


async def test_a_request_that_does_not_use_its_run_writes_nothing(settings: SkeinoSettings) -> None:
    app = wrapping(answering(), settings)
    async with connected(app) as client:
        response = await client.post("/", headers={"X-Thread-ID": "t1"})
        assert response.headers["x-run-id"]
        assert (await client.post("/", headers={"X-Thread-ID": "t1"})).status_code == 200
        assert await store_of(app).search_runs() == []
        assert await store_of(app).get_thread("t1") is None


async def test_the_row_is_there_before_the_graph_reads_or_writes(settings: SkeinoSettings) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        store, run = scope["state"]["metadata_store"], scope["state"]["run"]
        seen.append(await store.get_run(run.run_id))
        graph = compiled(scope["state"]["checkpointer"])
        await graph.aget_state(run.config)
        seen.append(await store.get_run(run.run_id))
        await graph.ainvoke({"words": ["a"]}, run.config)
        seen.append(await store.get_thread("t1"))
        await answering()(scope, receive, send)

    wrapped = wrapping(app, settings)
    async with connected(wrapped) as client:
        response = await client.post("/x", headers={"X-Thread-ID": "t1", "X-Request-ID": "r-1"})
        row = await ended(store_of(wrapped), response.headers["x-run-id"])
        thread = await store_of(wrapped).get_thread("t1")
    assert seen[0] is None
    assert (seen[1]["status"], seen[1]["thread_id"]) == ("running", "t1")
    assert seen[2]["status"] == "busy"
    assert (row["status"], row["checkpoint_count"], row["http_status"]) == ("success", 3, 200)
    assert row["kwargs"] == {"method": "POST", "path": "/x"}
    assert row["metadata"] == {"request_id": "r-1"}
    assert thread is not None
    assert thread["status"] == "idle"


@pytest.mark.parametrize("use", ["metadata", "config", "fail", "thread_id"])
async def test_a_run_that_is_used_without_a_graph_is_written_at_its_end(settings: SkeinoSettings, use: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        run = scope["state"]["run"]
        if use == "metadata":
            run.metadata["model"] = "fake"
        elif use == "config":
            assert run.config["configurable"]["thread_id"]
        elif use == "fail":
            run.fail("the model is away")
        else:
            run.thread_id = "chosen"
        assert await scope["state"]["metadata_store"].get_run(run.run_id) is None
        await answering()(scope, receive, send)

    wrapped = wrapping(app, settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        row = await written(wrapped, response.headers["x-run-id"])
    assert row["status"] == ("error" if use == "fail" else "success")
    assert row["metadata"] == ({"model": "fake"} if use == "metadata" else {})
    assert row["thread_id"] == {"config": response.headers.get("x-thread-id"), "thread_id": "chosen"}.get(use)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_many_at_once_write_the_row_once_though_the_first_of_them_is_cancelled(
    monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    gate, calls = asyncio.Event(), 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph, config = compiled(scope["state"]["checkpointer"]), scope["state"]["run"].config
        readers = [asyncio.create_task(graph.aget_state(config)) for _ in range(10)]
        await asyncio.sleep(0.01)
        if cancelled:
            readers[0].cancel()
            await asyncio.sleep(0.01)
        gate.set()
        ends = await asyncio.gather(*readers, return_exceptions=True)
        assert [one for one in ends[cancelled:] if isinstance(one, BaseException)] == []
        assert isinstance(ends[0], asyncio.CancelledError) == cancelled
        await answering()(scope, receive, send)

    wrapped = wrapping(app, SkeinoSettings())
    async with connected(wrapped) as client:
        store: Any = store_of(wrapped)
        start = store.start_run

        async def slow(*arguments: Any, **named: Any) -> None:
            nonlocal calls
            calls += 1
            await gate.wait()
            await start(*arguments, **named)

        monkeypatch.setattr(store, "start_run", slow)
        response = await client.post("/", headers={"X-Thread-ID": "t1"})
        assert response.status_code == 200
        assert (await ended(store, response.headers["x-run-id"]))["status"] == "success"
    assert calls == 1


async def test_a_graphs_synchronous_methods_use_it_as_well(settings: SkeinoSettings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph, config = compiled(scope["state"]["checkpointer"]), scope["state"]["run"].config
        await asyncio.to_thread(graph.invoke, {"words": ["a"]}, config)
        await answering()(scope, receive, send)

    wrapped = wrapping(app, settings)
    async with connected(wrapped) as client:
        response = await client.post("/", headers={"X-Thread-ID": "t1"})
        row = await written(wrapped, response.headers["x-run-id"])
    assert (row["status"], row["thread_id"], row["checkpoint_count"]) == ("success", "t1", 3)


async def test_a_busy_event_loop_is_waited_for() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph, config = compiled(scope["state"]["checkpointer"]), scope["state"]["run"].config
        work = asyncio.create_task(asyncio.to_thread(graph.invoke, {"words": ["a"]}, config))
        await asyncio.sleep(0.01)
        time.sleep(0.5)  # noqa: ASYNC251 (it is busy)
        await work
        await answering()(scope, receive, send)

    wrapped = wrapping(app, SkeinoSettings())
    async with connected(wrapped) as client:
        response = await client.post("/", headers={"X-Thread-ID": "t1"})
        assert (await written(wrapped, response.headers["x-run-id"]))["checkpoint_count"] == 3


async def test_synchronous_methods_on_the_event_loop_cannot_wait_for_the_row_and_write_nothing() -> None:
    """Whose thread it is could not be asked either."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph, config = compiled(scope["state"]["checkpointer"]), scope["state"]["run"].config
        with pytest.raises(InvalidInputError, match="use ainvoke or astream"):
            graph.invoke({"words": ["a"]}, config)
        await answering()(scope, receive, send)

    wrapped = wrapping(app, SkeinoSettings())
    async with connected(wrapped) as client:
        await store_of(wrapped).create_thread("adas", owner="ada")
        await client.post("/", headers={"X-Thread-ID": "adas"})
        config: Any = {"configurable": {"thread_id": "adas"}}
        assert await wrapped.tracker.checkpointer.aget_tuple(config) is None


def test_a_request_cannot_be_served_without_a_run_once_it_has_begun() -> None:
    with pytest.raises(ConfigurationError, match="on_store_error"):
        wrapping(answering(), SkeinoSettings(on_store_error="untracked"))


async def test_a_task_that_outlives_its_unused_request_leaves_an_ended_run(settings: SkeinoSettings) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        graph = compiled(scope["state"]["checkpointer"])

        async def later() -> None:
            await asyncio.sleep(0.05)
            run = current_run()
            assert run is not None
            assert not run.active
            await graph.ainvoke({"words": ["a"]}, {"configurable": {"thread_id": "t1"}})

        tasks.append(asyncio.create_task(later()))
        await answering(418)(scope, receive, send)

    wrapped = wrapping(app, settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        await tasks[0]
        row = await ended(store_of(wrapped), response.headers["x-run-id"])
    assert (row["status"], row["http_status"]) == ("success", 418)


async def test_another_owners_thread_is_not_found_before_the_handler_runs(settings: SkeinoSettings) -> None:
    handled: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        handled.append(scope["path"])
        await compiled(scope["state"]["checkpointer"]).ainvoke({"words": ["a"]}, scope["state"]["run"].config)
        await answering()(scope, receive, send)

    wrapped = wrapping(app, settings, owner=lambda connection: connection.headers["x-user"])
    async with connected(wrapped) as client:
        hers = await client.post("/hers", headers={"X-Thread-ID": "t1", "X-User": "ada"})
        his = await client.post("/his", headers={"X-Thread-ID": "t1", "X-User": "bob"})
        assert (hers.status_code, his.status_code) == (200, 404)
        assert handled == ["/hers"]
        row = await ended(store_of(wrapped), hers.headers["x-run-id"])
        assert row["owner"] == "ada"
        assert len(await store_of(wrapped).search_runs()) == 1


async def test_a_store_that_is_away_when_the_run_is_first_used_fails_the_graph_and_not_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next use tries again, and so does the end."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph, config = compiled(scope["state"]["checkpointer"]), scope["state"]["run"].config
        with pytest.raises(StoreUnavailableError, match="away"):
            await graph.ainvoke({"words": ["a"]}, config)
        await answering()(scope, receive, send)

    wrapped = wrapping(app, SkeinoSettings())
    async with connected(wrapped) as client:
        store: Any = store_of(wrapped)
        start, calls = store.start_run, 0

        async def moody(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == 1:
                raise StoreUnavailableError("the store is away")
            return await start(*arguments, **named)

        monkeypatch.setattr(store, "start_run", moody)
        response: httpx.Response = await client.post("/", headers={"X-Thread-ID": "t1"})
        row = await written(wrapped, response.headers["x-run-id"])
    assert (row["status"], row["checkpoint_count"]) == ("success", 0)


@pytest.mark.parametrize("record", ["always", "on_use"])
async def test_with_claim_a_request_that_is_refused_for_a_store_that_is_away_leaves_no_row(
    monkeypatch: pytest.MonkeyPatch, record: Any
) -> None:
    wrapped = RunMiddleware(answering(), settings=SkeinoSettings(), record=record, claim=["/*"])
    async with connected(wrapped) as client:
        assert (await client.post("/", headers={"X-Thread-ID": "t1"})).status_code == 200
        await wrapped.tracker.settled()
        before = await everything(store_of(wrapped))

        async def away(*_: Any, **__: Any) -> Any:
            raise StoreUnavailableError("the store is away")

        with monkeypatch.context() as patch:
            patch.setattr(store_of(wrapped), "start_run", away)
            assert (await client.post("/", headers={"X-Thread-ID": "t1"})).status_code == 503
        await wrapped.tracker.settled()
        assert await everything(store_of(wrapped)) == before


@pytest.mark.parametrize("record", ["always", "on_use"])
async def test_a_run_that_failed_on_another_owners_thread_keeps_its_row(settings: SkeinoSettings, record: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        run = scope["state"]["run"]
        run.thread_id = "adas"
        run.fail("nothing to see here")
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings, record=record)
    async with connected(wrapped) as client:
        await store_of(wrapped).create_thread("adas", owner="ada")
        response = await client.post("/")
        row = await written(wrapped, response.headers["x-run-id"])
    assert (row["status"], row["thread_id"]) == ("error", None)


@pytest.mark.parametrize("use", ["config", "graph"])
async def test_shutdown_ends_the_run_that_was_used_and_forgets_the_one_that_was_not(tmp_path: Path, use: str) -> None:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    begun, never = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/used":
            config = scope["state"]["run"].config
            if use == "graph":
                await compiled(scope["state"]["checkpointer"]).aget_state(config)
        begun.set()
        await never.wait()

    wrapped = wrapping(app, settings)
    requests = []
    async with wrapped.tracker.lifespan():
        transport = httpx.ASGITransport(app=wrapped, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path in ("/used", "/unused"):
                begun.clear()
                requests.append(asyncio.create_task(client.post(path, headers={"X-Thread-ID": "t1"})))
                await begun.wait()
            await wrapped.tracker.openings.here().close()  # while both are at work
    never.set()
    await asyncio.gather(*requests, return_exceptions=True)
    async with open_persistence(settings) as persistence:
        (row,) = await persistence.metadata_store.search_runs()
    assert row["error"] is not None
    assert (row["status"], row["error"]["code"]) == ("interrupted", "shutdown")
    assert row["kwargs"] == {"method": "POST", "path": "/used"}


async def test_a_task_that_first_uses_its_run_while_the_server_closes_leaves_none_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that comes too late, nor one whose row is being written then."""
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    go, gate = asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        graph = compiled(scope["state"]["checkpointer"])

        async def later() -> None:
            if scope["path"] == "/late":
                await go.wait()
            await graph.aget_state({"configurable": {"thread_id": "t1"}})

        tasks.append(asyncio.create_task(later()))
        await answering()(scope, receive, send)

    wrapped = wrapping(app, settings)
    async with connected(wrapped) as client:
        store: Any = store_of(wrapped)
        start = store.start_run

        async def slow(*arguments: Any, **named: Any) -> None:
            await gate.wait()
            await start(*arguments, **named)

        monkeypatch.setattr(store, "start_run", slow)
        await client.post("/early")
        await client.post("/late")
        closing = asyncio.create_task(wrapped.tracker.openings.here().close())
        await asyncio.sleep(0.05)
        go.set()
        await asyncio.sleep(0.05)
        gate.set()
        await closing
    _, late = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(late, StoreUnavailableError)
    assert "shutting down" in str(late)
    async with open_persistence(settings) as persistence:
        (row,) = await persistence.metadata_store.search_runs()
    assert (row["status"], row["kwargs"]["path"]) == ("success", "/early")
