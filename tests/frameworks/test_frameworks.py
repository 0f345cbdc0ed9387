"""What is promised holds in every framework, in every way of adding the middleware."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple

from skeino import SkeinoSettings, current_run
from skeino_asgi import RunTracker
from tests.asgi.conftest import ended
from tests.asgi.live_server import served, wait_until
from tests.frameworks import handlers
from tests.frameworks.conftest import client_of
from tests.frameworks.handlers import WORDS
from tests.frameworks.recipe import Recipe
from tests.frameworks.table import CELLS, FRAMEWORKS, NO_BACKGROUND, NOT_NATIVE, Cell
from tests.http_client import httpx


async def test_a_request_is_one_run_committed_before_the_handler_with_a_new_thread(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        response = await client.send("POST", "/chat", json={"word": "hello"})
        answer, row = response.json(), await client.run_of(response)
        thread_id = response.headers["x-thread-id"]
        assert answer == {
            "words": ["hello", "echo hello"],
            "row": "running",
            "run": row["run_id"],
            "thread": thread_id,
            "current": True,
        }
        assert (row["status"], row["http_status"], row["error"], row["thread_id"]) == ("success", 200, None, thread_id)
        thread = await client.store.get_thread(thread_id)
        assert thread is not None
        assert thread["status"] == "idle"
        stamps = [one.metadata["run_id"] async for one in checkpoints(client.tracker, thread_id)]
        assert stamps == [row["run_id"]] * 3
        assert row["checkpoint_count"] == 3
        assert [one["run_id"] for one in await client.store.search_runs()] == [row["run_id"]]
        assert response.headers.get_list("x-run-id") == [row["run_id"]]
        assert current_run() is None


async def test_a_thread_that_the_client_names_goes_on(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        first = await client.send("POST", "/threads/t1/chat", json={"word": "one"})
        second = await client.send("POST", "/threads/t1/chat", json={"word": "two"})
        assert second.json()["words"] == ["one", "echo one", "two", "echo two"]
        assert (first.json()["thread"], second.json()["thread"]) == ("t1", "t1")
        assert "x-thread-id" not in second.headers
        stamps = [one.metadata["run_id"] async for one in checkpoints(client.tracker, "t1")]
        assert stamps == [second.headers["x-run-id"]] * 3 + [first.headers["x-run-id"]] * 3


async def test_a_synchronous_handler_is_in_the_run_and_the_context_is_clean_after_it(
    cell: Cell, recipe: Recipe
) -> None:
    async with client_of(cell, recipe) as client:
        response = await client.send("POST", "/sync")
        seen = {"run": response.headers["x-run-id"], "current": True}
        on_the_event_loop = cell.framework.synchronous == "on the event loop"
        assert response.json() == (seen if on_the_event_loop else {"words": ["sync", "echo sync"], **seen})
        assert (await client.run_of(response))["checkpoint_count"] == (0 if on_the_event_loop else 3)
        assert current_run() is None


async def test_each_run_ends_as_its_response_says(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        teapot = await client.run_of(await client.send("POST", "/teapot"))
        broken = await client.run_of(await client.send("POST", "/broken"))
        assert (teapot["status"], teapot["http_status"], teapot["error"]) == ("success", 418, None)
        assert (broken["status"], broken["http_status"]) == ("error", 503)
        assert broken["error"] is not None
        assert broken["error"]["code"] == "http_error"
        assert len(await client.store.search_runs()) == 2


async def test_the_run_of_a_handler_that_raises_is_an_error(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        response = await client.send("POST", "/fail")
        assert response.status_code == 500
        (started,) = await client.store.search_runs()
        row = await ended(client.store, started["run_id"])
        assert row["status"] == "error"
        assert row["error"] is not None
        expected = ("exception", "RuntimeError") if cell.sees_exception else ("http_error", None)
        assert (row["error"]["code"], row["error"]["type"]) == expected
        assert row["http_status"] == (500 if cell.sees_500 else None)
        assert response.headers.get("x-run-id") == (row["run_id"] if cell.sees_500 else None)
        assert current_run() is None


async def test_a_streaming_body_is_in_the_run(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        response = await client.send("GET", "/stream")
        assert response.text.splitlines() == [f"echo {word}" for word in WORDS]
        row = await client.run_of(response)
        assert (row["status"], row["http_status"]) == ("success", 200)
        assert row["thread_id"] == response.headers["x-thread-id"]
        assert row["checkpoint_count"] == 9
        assert current_run() is None


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.framework.background], ids=str)
async def test_a_background_task_is_in_the_run_which_ends_after_it(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        response = await client.send("POST", "/background")
        row = await client.run_of(response)
        assert (response.status_code, row["status"], row["http_status"]) == (200, "success", 200)
        assert row["thread_id"] is not None
        stamps = [one.metadata["run_id"] async for one in checkpoints(client.tracker, row["thread_id"])]
        assert stamps == [row["run_id"]] * 3
        assert row["checkpoint_count"] == 3


async def test_the_applications_own_hooks_run_once_while_the_tracker_is_open(cell: Cell, recipe: Recipe) -> None:
    async with client_of(cell, recipe) as client:
        assert recipe.journal == (cell.journal[:1] if cell.hooks_run else [])
        for _ in range(2):
            assert (await client.send("POST", "/sync")).status_code == 200
        assert recipe.journal == cell.journal[:1]
    assert recipe.journal == cell.journal
    assert not recipe.is_open


@pytest.fixture
def broken_recipe(tmp_path: Path) -> Recipe:
    """Its file is in a folder that does not exist."""
    uri = str(tmp_path / "missing" / "skeino.db")
    return Recipe(RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=uri)))


async def test_when_opening_fails_the_server_is_told_at_once_and_the_applications_hooks_do_not_run(
    cell: Cell, broken_recipe: Recipe
) -> None:
    if cell.way.lifespan:
        assert "missing of checkpointer_uri does not exist" in await failure_of_start_up(cell, broken_recipe)
    else:  # then the first request is
        transport = httpx.ASGITransport(app=cell.build(broken_recipe), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            assert (await http.post("/sync")).status_code == 500
    assert broken_recipe.journal == []
    assert not broken_recipe.is_open


@pytest.mark.parametrize("cell", [cell for cell in CELLS if cell.hooks_run], ids=str)
async def test_when_the_applications_own_start_up_fails_the_tracker_is_closed(cell: Cell, recipe: Recipe) -> None:
    recipe.start_up_fails = True
    await failure_of_start_up(cell, recipe)
    assert recipe.journal == ["start-up, tracker open"]
    assert not recipe.is_open


async def failure_of_start_up(cell: Cell, recipe: Recipe) -> str:
    """What the application tells a server of its start-up, which fails; the tracker is closed by then."""
    messages = [{"type": "lifespan.startup"}]
    told: list[tuple[dict[str, Any], bool]] = []
    is_told = asyncio.Event()

    async def receive() -> Any:
        if not messages:
            await asyncio.Event().wait()  # Quart waits here for ever, as no server says anything any more
        return messages.pop()

    async def send(message: Any) -> None:
        told.append((message, recipe.is_open))
        is_told.set()

    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    serving = asyncio.ensure_future(cell.build(recipe)(scope, receive, send))
    waiting = asyncio.ensure_future(is_told.wait())
    await asyncio.wait([serving, waiting], timeout=5, return_when=asyncio.FIRST_COMPLETED)
    for task in (serving, waiting):
        task.cancel()
    await asyncio.gather(serving, waiting, return_exceptions=True)
    ((message, was_open),) = told
    assert message["type"] == "lifespan.startup.failed"
    assert not was_open
    return str(message.get("message", ""))


SERVED = [cell for cell in CELLS if cell.way.name in ("native", "wrapped")]


@pytest.mark.parametrize("cell", SERVED, ids=str)
def test_on_a_real_server_a_stream_arrives_in_pieces_while_its_run_is_running(
    cell: Cell, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_line_arrived = threading.Event()
    file = recipe.tracker.settings.checkpointer_uri
    wait_between_lines_for(first_line_arrived, monkeypatch)
    with served(cell.build(recipe)) as url, httpx.stream("GET", f"{url}/stream", timeout=20) as response:
        lines = response.iter_lines()
        assert next(lines) == f"echo {WORDS[0]}"
        run_id = response.headers["x-run-id"]
        assert status_of(file, run_id) == "running"
        first_line_arrived.set()
        assert list(lines) == [f"echo {word}" for word in WORDS[1:]]
        wait_until(lambda: status_of(file, run_id) != "running")
        assert status_of(file, run_id) == "success"
    assert recipe.journal == cell.journal


@pytest.mark.parametrize("cell", SERVED, ids=str)
def test_on_a_real_server_a_client_that_leaves_interrupts_the_run_where_the_framework_notices(
    cell: Cell, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    file = recipe.tracker.settings.checkpointer_uri
    wait_between_lines_for(go_on, monkeypatch)
    with served(cell.build(recipe)) as url:
        with httpx.stream("GET", f"{url}/stream", timeout=20) as response:
            lines = response.iter_lines()  # kept: the connection closes with it
            assert next(lines) == f"echo {WORDS[0]}"
            run_id = response.headers["x-run-id"]
            assert status_of(file, run_id) == "running"
        if not cell.framework.notices_leaving:
            time.sleep(0.1)
            assert status_of(file, run_id) == "running"
            go_on.set()
        wait_until(lambda: status_of(file, run_id) != "running")
        go_on.set()
        assert status_of(file, run_id) == ("interrupted" if cell.framework.notices_leaving else "success")


def test_every_empty_cell_has_its_reason() -> None:
    assert set(NOT_NATIVE) == {one.name for one in FRAMEWORKS if not one.native}
    assert set(NO_BACKGROUND) == {one.name for one in FRAMEWORKS if not one.background}


def wait_between_lines_for(event: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    async def between_lines() -> None:
        while not event.is_set():
            await asyncio.sleep(0.005)

    monkeypatch.setattr(handlers, "between_lines", between_lines)


def checkpoints(tracker: RunTracker, thread_id: str) -> AsyncIterator[CheckpointTuple]:
    """Newest first."""
    return tracker.checkpointer.alist({"configurable": {"thread_id": thread_id}})


def status_of(file: str | None, run_id: str) -> str:
    """What the file says, read by another connection."""
    with closing(sqlite3.connect(str(file))) as connection:
        (status,) = connection.execute("SELECT status FROM app_runs WHERE run_id = ?", [run_id]).fetchone()
    return str(status)
