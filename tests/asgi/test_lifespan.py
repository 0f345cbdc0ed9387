"""Start-up and shutdown around any inner application: opened once, closed once, never a hang."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sqlite3
import subprocess
import sys
import weakref
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from starlette.applications import Starlette
from starlette.testclient import TestClient

from skeino import ConfigurationError, SkeinoSettings, StoreUnavailableError
from skeino.persistence import registry
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.http_client import httpx

ROOT = Path(__file__).parents[2]
BROKEN = SkeinoSettings(checkpointer_scheme="nosuch")


@pytest.fixture
def journal(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a checkpointer of scheme `journalled` notes when it is opened and closed."""
    from langgraph.checkpoint.memory import InMemorySaver

    entries: list[str] = []
    monkeypatch.setattr(registry, "_checkpointers", {})

    @registry.register_checkpointer("journalled", durable=False)
    @asynccontextmanager
    async def build(spec: Any) -> Any:
        task = asyncio.current_task()
        entries.append("open")
        try:
            yield InMemorySaver()
        finally:
            assert asyncio.current_task() is task
            entries.append("close")

    return entries


JOURNALLED = SkeinoSettings(checkpointer_scheme="journalled")


async def test_it_opens_before_the_inner_application_and_closes_after_it(journal: list[str]) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "lifespan.startup"
        journal.append("inner start")
        assert "checkpointer" in scope["state"]
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        journal.append("inner stop")
        await send({"type": "lifespan.shutdown.complete"})

    async with LifespanManager(RunMiddleware(inner, settings=JOURNALLED)):
        pass
    assert journal == ["open", "inner start", "inner stop", "close"]


async def _returns(scope: Any, receive: Any, send: Any) -> None:
    return


async def _raises(scope: Any, receive: Any, send: Any) -> None:
    raise ValueError("no lifespan here")


async def _starts_and_returns(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def _says_nothing_at_shutdown(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()


@pytest.mark.parametrize("inner", [_returns, _raises, _starts_and_returns, _says_nothing_at_shutdown])
async def test_an_application_that_does_not_speak_lifespan_is_served_all_the_same(
    journal: list[str], inner: Any
) -> None:
    async with LifespanManager(RunMiddleware(inner, settings=JOURNALLED)):
        assert journal == ["open"]
    assert journal == ["open", "close"]


async def test_when_the_inner_applications_start_up_fails_ours_is_closed_first(journal: list[str]) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "inner"})
        assert journal == ["open", "close"]
        await receive()  # Quart loops back here and would wait for ever

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    messages = iter([{"type": "lifespan.startup"}])

    async def receive() -> Any:
        try:
            return next(messages)
        except StopIteration:
            raise asyncio.CancelledError from None  # as a server ends the task

    with pytest.raises(asyncio.CancelledError):
        await RunMiddleware(inner, settings=JOURNALLED)({"type": "lifespan", "state": {}}, receive, send)
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert journal == ["open", "close"]


async def test_an_error_in_the_inner_applications_shutdown_is_raised_after_closing(journal: list[str]) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        yield
        raise RuntimeError("inner shutdown")

    with pytest.raises(RuntimeError, match="inner shutdown"):
        async with LifespanManager(RunMiddleware(Starlette(lifespan=lifespan), settings=JOURNALLED)):
            pass
    assert journal == ["open", "close"]


async def test_a_cancelled_lifespan_task_closes(journal: list[str]) -> None:
    async def inner(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()

    started = asyncio.Event()

    async def receive() -> Any:
        if started.is_set():
            await asyncio.Event().wait()
        started.set()
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        pass

    app = RunMiddleware(inner, settings=JOURNALLED)
    task = asyncio.create_task(app({"type": "lifespan"}, receive, send))
    while journal != ["open"]:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert journal == ["open", "close"]


@pytest.mark.parametrize("native", [False, True])
async def test_a_failing_start_up_is_told_at_once(native: bool) -> None:
    tracker = RunTracker(BROKEN)
    app: Any = (
        Starlette(lifespan=combine_lifespans(tracker.lifespan))
        if native
        else RunMiddleware(answering(), tracker=tracker)
    )
    with pytest.raises(ConfigurationError, match="nosuch"):
        async with LifespanManager(app):
            raise AssertionError


@pytest.mark.parametrize("native", [False, True])
def test_a_failing_start_up_does_not_hang_starlettes_test_client(native: bool) -> None:
    tracker = RunTracker(BROKEN)
    app: Any = (
        Starlette(lifespan=combine_lifespans(tracker.lifespan))
        if native
        else RunMiddleware(answering(), tracker=tracker)
    )
    with pytest.raises(ConfigurationError, match="nosuch"), TestClient(app):
        raise AssertionError


async def test_without_a_lifespan_the_first_request_fails_fast_and_says_why() -> None:
    app = RunMiddleware(answering(), settings=BROKEN)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
        for _ in range(2):  # and so does the next
            with pytest.raises(ConfigurationError, match="nosuch"):
                await client.post("/")
    with pytest.raises(ConfigurationError, match="nosuch"):
        TestClient(app).post("/")


def test_a_database_that_cannot_be_reached_does_not_hang_a_start_up_or_a_first_request(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file.db").write_text("this is no database, and long enough to be read as one" * 100)
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "folder" / "file.db"))
    app = RunMiddleware(answering(), settings=settings)
    with pytest.raises(ConfigurationError, match="not a SQLite database"), TestClient(app):
        raise AssertionError
    with pytest.raises(ConfigurationError, match="not a SQLite database"):
        TestClient(app).post("/")


def test_starlettes_test_client_without_a_lifespan_serves_each_request_on_a_loop_of_its_own(journal: list[str]) -> None:
    client = TestClient(RunMiddleware(answering(), settings=JOURNALLED))
    assert client.post("/").headers["x-run-id"] != client.post("/").headers["x-run-id"]
    assert journal == ["open", "close"] * 2


async def test_entered_twice_on_one_loop_it_opens_once_and_closes_with_the_last(journal: list[str]) -> None:
    tracker = RunTracker(JOURNALLED)
    async with tracker.lifespan() as one:
        async with tracker.lifespan() as two:
            assert one["checkpointer"] is two["checkpointer"] is tracker.checkpointer
        assert journal == ["open"]
    assert journal == ["open", "close"]
    with pytest.raises(StoreUnavailableError, match="not open"):
        _ = tracker.checkpointer


async def test_it_can_be_opened_again_after_it_was_closed(journal: list[str]) -> None:
    tracker = RunTracker(JOURNALLED)
    for _ in range(2):
        async with tracker.lifespan(), tracker.run() as run:
            assert run.active
    assert journal == ["open", "close"] * 2


async def test_a_failed_opening_is_tried_anew_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_checkpointers", {})
    tracker = RunTracker(JOURNALLED)
    with pytest.raises(ConfigurationError):
        async with tracker.lifespan():
            raise AssertionError

    @registry.register_checkpointer("journalled", durable=False)
    @asynccontextmanager
    async def build(spec: Any) -> Any:
        from langgraph.checkpoint.memory import InMemorySaver

        yield InMemorySaver()

    async with tracker.lifespan() as state:
        assert state["checkpointer"] is not None


def test_without_any_lifespan_the_first_request_opens_and_the_end_of_the_loop_closes(journal: list[str]) -> None:
    async def main() -> None:
        app = RunMiddleware(answering(), settings=JOURNALLED)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            assert journal == []
            responses = await asyncio.gather(*(client.get("/") for _ in range(5)))
            assert journal == ["open"]
            for response in responses:
                assert (await ended(store_of(app), response.headers["x-run-id"]))["status"] == "success"

    asyncio.run(main())
    assert journal == ["open", "close"]


def test_each_event_loop_has_its_own(journal: list[str]) -> None:
    tracker = RunTracker(JOURNALLED)

    async def main() -> int:
        async with tracker.lifespan(), tracker.run():
            pass
        return id(asyncio.get_running_loop())

    asyncio.run(main())
    asyncio.run(main())
    assert journal == ["open", "close"] * 2


async def test_its_resources_inherit_no_context_of_the_request_that_opened_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextvars

    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []
    monkeypatch.setattr(registry, "_checkpointers", {})

    @registry.register_checkpointer("journalled", durable=False)
    @asynccontextmanager
    async def build(spec: Any) -> Any:
        from langgraph.checkpoint.memory import InMemorySaver

        seen.append(variable.get())
        yield InMemorySaver()

    variable.set("the request's")
    async with connected(RunMiddleware(answering(), settings=JOURNALLED)) as client:
        await client.get("/")
    assert seen == ["none"]


async def test_combined_lifespans_merge_their_state_and_leave_in_reverse() -> None:
    order: list[str] = []

    def named(name: str) -> Any:
        @asynccontextmanager
        async def lifespan(app: Any) -> Any:
            order.append(f"+{name}")
            yield {name: app}
            order.append(f"-{name}")

        return lifespan

    @asynccontextmanager
    async def silent(app: Any) -> Any:
        yield None

    async with combine_lifespans(named("a"), silent, named("b"))("app") as state:
        assert state == {"a": "app", "b": "app"}
    assert order == ["+a", "+b", "-b", "-a"]


async def test_what_is_no_lifespan_is_told_what_it_lacks() -> None:
    tracker = RunTracker(SkeinoSettings())

    async def undecorated(app: Any) -> Any:
        yield

    wrong: Any
    for wrong in (tracker, None):
        with pytest.raises(ConfigurationError, match=r"give tracker\.lifespan, without parentheses"):
            combine_lifespans(wrong)
    for wrong in (tracker.lifespan(), undecorated):
        with pytest.raises(ConfigurationError, match="decorate it with @asynccontextmanager"):
            async with combine_lifespans(wrong)(None):
                pass


async def test_shutdown_writes_the_ends_of_runs_and_ends_the_rest_as_interrupted(settings: SkeinoSettings) -> None:
    if settings.checkpointer_scheme == "memory":
        return  # nothing is left to look at after shutdown
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        finished = tracker.run(thread_id="t1")
        run = await finished.__aenter__()
        left = await tracker.run(thread_id="t2").__aenter__()
        with contextlib.suppress(asyncio.CancelledError):
            await finished.__aexit__(asyncio.CancelledError, asyncio.CancelledError(), None)
    async with tracker.lifespan():
        ends = {row["run_id"]: row for row in await tracker.metadata_store.search_runs()}
        assert ends[run.run_id]["status"] == "interrupted"
        assert ends[left.run_id]["status"] == "interrupted"
        assert ends[run.run_id]["error"] == {
            "code": "cancelled",
            "type": None,
            "message": "The run was cancelled in the run.",
        }
        error = ends[left.run_id]["error"]
        assert error is not None
        assert error["code"] == "shutdown"


async def test_while_closing_new_requests_are_refused_with_a_retry_after(journal: list[str]) -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        inside.set()
        await go_on.wait()
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=JOURNALLED)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=wrapped), base_url="http://test") as client:
        opening = await wrapped.tracker.openings.acquire()
        slow = asyncio.create_task(client.post("/"))
        await inside.wait()
        closing = asyncio.create_task(wrapped.tracker.openings.release(opening))
        while not opening.closing:
            await asyncio.sleep(0)
        refused = await client.post("/")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        go_on.set()
        assert (await slow).status_code == 200
        await closing
    assert journal == ["open", "close"]


LOOP_THAT_JUST_STOPS = """
import asyncio, multiprocessing, sqlite3, sys
from skeino import SkeinoSettings
from skeino_asgi import RunMiddleware

async def app(scope, receive, send):
    started.set()
    await asyncio.sleep(60)

async def main():
    global request
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
    request = asyncio.get_running_loop().create_task(wrapped(scope, None, None))  # kept: it is at work at the end
    await started.wait()

def status():
    with sqlite3.connect(sys.argv[1]) as connection:
        return connection.execute("SELECT status FROM app_runs").fetchall()

started = asyncio.Event()
settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=sys.argv[1])
wrapped = RunMiddleware(app, settings=settings)
asyncio.new_event_loop().run_until_complete(main())
child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
child.start()
child.join(10)
print(child.exitcode, *status()[0])
"""


def test_the_end_of_a_process_whose_loop_just_stopped_closes_and_that_of_its_forked_child_does_not(
    tmp_path: Path,
) -> None:
    file = tmp_path / "skeino.db"
    command = [sys.executable, "-c", LOOP_THAT_JUST_STOPS, str(file)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert process.stdout.split() == ["child", "0", "running"], process.stderr
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT status FROM app_runs").fetchall() == [("interrupted",)]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["skeino.db"]  # no write-ahead log is left


def test_an_event_loop_that_has_ended_is_not_kept() -> None:
    app = RunMiddleware(answering(), settings=SkeinoSettings())
    loops: list[weakref.ref[Any]] = []

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            assert (await client.post("/")).status_code == 200

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [one() for one in loops] == [None] * 3
