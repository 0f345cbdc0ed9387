"""What the pages say in prose, tried."""

import asyncio
import contextvars
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from asgi_lifespan import LifespanManager
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from skeino import (
    ConfigurationError,
    InvalidInputError,
    ResumeTrapWarning,
    SkeinoSettings,
    ThreadBusyError,
    ThreadNotFoundError,
    current_run,
)
from skeino.persistence import open_persistence
from skeino.scrubbing import scrubbed
from skeino_asgi import RunMiddleware, RunTracker
from tests.docs.blocks import ROOT, blocks_of
from tests.http_client import httpx

SETTINGS = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="claims.db")


@asynccontextmanager
async def client_of(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with LifespanManager(app) as manager:
        transport = httpx.ASGITransport(app=manager.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def say(request: Request) -> Response:
    run = request.state.run
    return JSONResponse({"run": None if run is None else run.run_id, "state": "checkpointer" in request.scope["state"]})


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_head_and_options_have_the_state_and_no_run(method: str) -> None:
    seen = []

    async def look(request: Request) -> Response:
        seen.append((request.state.run, "checkpointer" in request.scope["state"]))
        return Response()

    async with client_of(RunMiddleware(Starlette(routes=[Route("/", look, methods=[method])]))) as client:
        response = await client.request(method, "/")
    assert seen == [(None, True)]
    assert "x-run-id" not in response.headers


def test_a_websocket_has_the_state_and_no_run_and_each_message_can_be_one() -> None:
    tracker = RunTracker()

    async def echo(websocket: WebSocket) -> None:
        assert websocket.state.run is None
        await websocket.accept()
        async with tracker.run(thread_id=await websocket.receive_text()) as run:
            assert current_run() is run
        row = await websocket.state.metadata_store.get_run(run.run_id)
        await websocket.send_json([row["thread_id"], row["status"]])
        await websocket.close()

    app = RunMiddleware(Starlette(routes=[WebSocketRoute("/", echo)]), tracker=tracker)
    with TestClient(app) as client, client.websocket_connect("/") as websocket:
        websocket.send_text("t1")
        assert websocket.receive_json() == ["t1", "success"]


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_get_and_delete_create_no_thread_unless_their_graph_writes(method: str, builder: Any) -> None:
    async def write(request: Request) -> Response:
        graph = builder.compile(checkpointer=request.state.checkpointer)
        await graph.ainvoke({"messages": ["Hello"]}, request.state.run.config)
        return Response()

    routes = [Route("/read", say, methods=[method]), Route("/write", write, methods=[method])]
    async with client_of(RunMiddleware(Starlette(routes=routes), settings=SETTINGS)) as client:
        (await client.request(method, "/read", headers={"X-Thread-ID": "read"})).raise_for_status()
        (await client.request(method, "/write", headers={"X-Thread-ID": "written"})).raise_for_status()

    async with open_persistence(SETTINGS) as persistence:
        assert await persistence.metadata_store.get_thread("read") is None
        assert await persistence.metadata_store.get_thread("written") is not None


async def test_a_failed_read_leaves_its_thread_as_it_was_and_a_failed_post_does_not() -> None:
    async def fail(request: Request) -> Response:
        return Response(status_code=500)

    app = RunMiddleware(Starlette(routes=[Route("/", fail, methods=["GET", "POST"])]), settings=SETTINGS)
    async with open_persistence(SETTINGS) as persistence:
        await persistence.metadata_store.create_thread("t1")
    for method, status in (("GET", "idle"), ("POST", "error")):
        async with client_of(app) as client:
            await client.request(method, "/", headers={"X-Thread-ID": "t1"})
        async with open_persistence(SETTINGS) as persistence:
            thread = await persistence.metadata_store.get_thread("t1")
            (run,) = await persistence.metadata_store.search_runs(metadata={}, thread_id="t1", limit=1)
        assert thread is not None
        assert thread["status"] == status
        assert run["status"] == "error"
        assert run["kwargs"]["method"] == method


async def test_a_4xx_is_a_success_that_keeps_its_status() -> None:
    async with client_of(RunMiddleware(Starlette(), settings=SETTINGS)) as client:
        run_id = (await client.get("/nowhere")).headers["x-run-id"]
    async with open_persistence(SETTINGS) as persistence:
        run = await persistence.metadata_store.get_run(run_id)
    assert run is not None
    assert (run["status"], run["http_status"], run["thread_id"]) == ("success", 404, None)


async def test_a_thread_comes_from_the_callable_alone_else_the_path_else_the_header() -> None:
    async def thread(request: Request) -> Response:
        return JSONResponse(request.state.run.thread_id)

    inner = Starlette(routes=[Route("/{rest:path}", thread)])
    header = {"X-Thread-ID": "header"}
    async with client_of(RunMiddleware(inner, thread_path="/threads/{thread_id}")) as client:
        assert (await client.get("/threads/path/runs", headers=header)).json() == "path"
        assert (await client.get("/other", headers=header)).json() == "header"
        assert (await client.get("/other")).json() is None
        assert (await client.get("/other", headers={"X-Thread-ID": "x" * 256})).status_code == 400
    async with client_of(RunMiddleware(inner, thread_path="/threads/{thread_id}", thread_id=lambda _: None)) as client:
        assert (await client.get("/threads/path", headers=header)).json() is None


async def test_a_static_breakpoint_is_not_seen(builder: Any) -> None:
    tracker = RunTracker()
    async with tracker.lifespan():
        graph = builder.compile(checkpointer=tracker.checkpointer, interrupt_before=["answer"])
        async with tracker.run(thread_id="t1") as run:
            await graph.ainvoke({"messages": ["Hello"]}, run.config)
        assert (await graph.aget_state(run.config)).next == ("answer",)
        thread = await tracker.metadata_store.get_thread("t1")
    assert thread is not None
    assert thread["status"] == "idle"


@pytest.mark.parametrize(("copied", "stamped"), [(True, True), (False, False)])
async def test_an_executor_sees_the_run_only_in_a_copied_context(builder: Any, copied: bool, stamped: bool) -> None:
    tracker = RunTracker()
    async with tracker.lifespan():
        graph = builder.compile(checkpointer=tracker.checkpointer)
        async with tracker.run(thread_id="t1") as run:

            def invoke() -> None:
                graph.invoke({"messages": ["Hello"]}, run.config)

            context = contextvars.copy_context()
            work = (context.run, invoke) if copied else (invoke,)
            await asyncio.get_running_loop().run_in_executor(None, *work)
        snapshot = await graph.aget_state(run.config)
    assert (snapshot.metadata.get("run_id") == run.run_id) is stamped


async def test_a_sqlite_file_is_private_and_an_existing_one_keeps_its_mode(tmp_path: Path) -> None:
    for name, mode in (("new.db", 0o600), ("old.db", 0o640)):
        path = tmp_path / name
        if name == "old.db":
            path.touch()
            path.chmod(0o640)
        async with open_persistence(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(path))):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == mode


async def test_a_busy_thread_is_deleted_by_force_only_and_can_run_again() -> None:
    async with open_persistence(SETTINGS) as persistence:
        store = persistence.metadata_store
        await store.start_run("01978f1e-0000-7000-8000-000000000001", worker_id="dead", thread_id="t1")
    tracker = RunTracker(SETTINGS)
    async with tracker.lifespan():
        async with tracker.run(thread_id="t1"):
            pass
        thread = await tracker.metadata_store.get_thread("t1")
        assert thread is not None
        assert thread["status"] == "busy"
        with pytest.raises(ThreadBusyError):
            await tracker.persistence.delete_thread("t1")
        await tracker.persistence.delete_thread("t1", force=True)


@pytest.mark.parametrize(("choice", "status"), [("reject", 503), ("untracked", 200)])
async def test_a_request_while_the_store_is_away(choice: Any, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="away.db", on_store_error=choice)
    tracker = RunTracker(settings)
    app = RunMiddleware(Starlette(routes=[Route("/", say)]), tracker=tracker)
    async with client_of(app) as client:
        await tracker.metadata_store._database.reader.close()  # type: ignore[attr-defined]
        tracker.metadata_store._database._connection.close()  # type: ignore[attr-defined]
        response = await client.get("/")

    assert response.status_code == status
    assert "x-run-id" not in response.headers
    if status == 503:
        assert response.json()["error"] == "store_unavailable"
        assert response.headers["retry-after"] == "1"
    else:
        assert response.json() == {"run": None, "state": True}


def test_misspelt_variables_and_options_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEINO_CHECKPOINTER_SCHEMA", "postgres")
    with pytest.raises(ConfigurationError, match="did you mean SKEINO_CHECKPOINTER_SCHEME"):
        SkeinoSettings()


async def test_a_misspelt_option_is_refused() -> None:
    settings = SkeinoSettings(
        checkpointer_scheme="sqlite", checkpointer_uri="x.db", checkpointer_options={"busy_timout": 1}
    )
    with pytest.raises(ConfigurationError, match="did you mean busy_timeout"):
        async with open_persistence(settings):
            pass


def test_the_other_projects_distribution_is_refused_with_a_remedy(tmp_path: Path) -> None:
    other = tmp_path / "skeino-1.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: skeino\nVersion: 1.0\n")

    done = subprocess.run(
        [sys.executable, "-c", "import skeino_asgi"],
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "pip uninstall skeino skeino-asgi" in done.stderr.splitlines()[-1]


async def test_a_run_id_in_a_graphs_config_does_not_change_the_stamp(builder: Any) -> None:
    tracker = RunTracker()
    async with tracker.lifespan():
        graph = builder.compile(checkpointer=tracker.checkpointer)
        async with tracker.run(thread_id="t1") as run:
            await graph.ainvoke({"messages": ["Hello"]}, {**run.config, "metadata": {"run_id": "forged"}})
            with pytest.warns(ResumeTrapWarning):
                await graph.ainvoke({"messages": ["Hello"]}, {**run.config, "metadata": {"run_id": run.run_id}})
        snapshots = [snapshot async for snapshot in graph.aget_state_history(run.config)]
    assert {snapshot.metadata["run_id"] for snapshot in snapshots} == {run.run_id}


async def test_a_run_with_an_owner_cannot_reach_or_delete_anothers_thread(builder: Any) -> None:
    tracker = RunTracker()
    async with tracker.lifespan():
        graph = builder.compile(checkpointer=tracker.checkpointer)
        async with tracker.run(thread_id="ada-1", owner="ada") as run:
            await graph.ainvoke({"messages": ["Hello"]}, run.config)
        async with tracker.run(owner="bob"):
            with pytest.raises(ThreadNotFoundError):
                await graph.aget_state(run.config)
            with pytest.raises(ThreadNotFoundError):
                await graph.ainvoke({"messages": ["Hello"]}, run.config)
            with pytest.raises(ThreadNotFoundError):
                await tracker.persistence.delete_thread("ada-1")
            with pytest.raises(InvalidInputError, match="no thread_id"):
                await graph.ainvoke({"messages": ["Hello"]}, {"configurable": {"checkpoint_ns": ""}})
        assert await tracker.metadata_store.get_thread("ada-1") is not None


async def test_a_run_has_one_thread_and_its_row_names_the_first() -> None:
    tracker = RunTracker()
    async with tracker.lifespan():
        async with tracker.run() as run:
            run.thread_id = "first"
            with pytest.raises(InvalidInputError):
                run.thread_id = "second"
        row = await tracker.metadata_store.get_run(run.run_id)
    assert row is not None
    assert row["thread_id"] == "first"
    assert not run.active


async def test_a_time_limit_makes_the_run_a_timeout() -> None:
    tracker = RunTracker()
    async with tracker.lifespan():
        with pytest.raises(TimeoutError):
            async with tracker.run() as run, asyncio.timeout(0.01):
                await asyncio.sleep(5)
        row = await tracker.metadata_store.get_run(run.run_id)
    assert row is not None
    assert row["error"] is not None
    assert (row["status"], row["error"]["code"]) == ("timeout", "timeout")


async def test_a_misspelt_condition_of_a_search_raises() -> None:
    async with open_persistence(SETTINGS) as persistence:
        with pytest.raises(TypeError, match="statuses"):
            await persistence.metadata_store.search_runs(statuses="error")  # type: ignore[call-arg]


@pytest.mark.parametrize("uri", ["relative.db", "sqlite:///relative.db", "sqlite:///{folder}/absolute.db"])
async def test_the_forms_of_a_sqlite_uri(uri: str, tmp_path: Path) -> None:
    uri = uri.format(folder=tmp_path)
    async with open_persistence(SkeinoSettings(checkpointer_scheme="sqlite3", checkpointer_uri=uri)):
        assert (tmp_path / Path(uri).name).is_file()
        assert (tmp_path / f"{Path(uri).name}-wal").is_file()


def test_security_each_name_that_the_page_gives_hides_what_follows_it() -> None:
    page = (ROOT / "docs/security.md").read_text()
    sentence = page[page.index("the value after a name such as") :].partition(", in quotes")[0]
    names = re.findall(r"`([^`]+)`", sentence)
    assert len(names) > 8
    for text in (*(f"{name}=hunter2" for name in names), *(f"{{'{name}': 'hunter2 x'}}" for name in names)):
        assert "hunter2" not in scrubbed(text), text
    for header in ("Authorization: Token", "Proxy-Authorization: Digest", "Cookie: a=1; b=", "Set-Cookie: sid="):
        assert header.partition(":")[0] in page
        assert "hunter2" not in scrubbed(f"{header} hunter2" if header[-1] != "=" else f"{header}hunter2")


async def test_threads_from_before_owners_are_found_once_they_have_one(tmp_path: Path) -> None:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        async with tracker.run(thread_id="ada-1") as before:
            pass
        with pytest.raises(ThreadNotFoundError):
            async with tracker.run(thread_id="ada-1", owner="ada"):
                pass
    (statements,) = blocks_of(ROOT / "docs" / "runs.md", "sql")
    with closing(sqlite3.connect(tmp_path / "skeino.db")) as connection:
        connection.executescript(statements.code)
    async with tracker.lifespan():
        async with tracker.run(thread_id="ada-1", owner="ada") as after:
            pass
        runs = await tracker.metadata_store.search_runs(owner="ada")
    assert {run["run_id"] for run in runs} == {before.run_id, after.run_id}
