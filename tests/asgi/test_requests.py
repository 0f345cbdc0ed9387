"""Every request is a run: what the middleware does around a handler, on every scheme."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from skeino import ConfigurationError, Run, RunInterruptedError, SkeinoSettings, current_run
from skeino_asgi import RunMiddleware, RunTracker
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.asgi.graphs import compiled


def chat(**seen: Any) -> Any:
    """POST: one turn of the graph; the thread comes from run.config. GET: the thread's state."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        state = scope["state"]
        run: Run = state["run"]
        seen.setdefault("runs", []).append(run)
        store = state["metadata_store"]
        row = await store.get_run(run.run_id)
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        graph = compiled(state["checkpointer"])
        if scope["method"] == "POST":
            words = [(await graph.ainvoke({"words": [word]}, run.config))["words"][-1] for word in json.loads(body)]
        else:
            words = (await graph.aget_state(run.config)).values.get("words", [])
        answer = {"words": words, "row": row["status"], "thread": run.thread_id, "current": current_run() is run}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return app


async def test_a_request_is_a_run_with_a_row_a_thread_and_a_ledger(settings: SkeinoSettings) -> None:
    app = RunMiddleware(chat(), settings=settings)
    async with connected(app) as client:
        response = await client.post("/chat?secret=1", json=["hello"], headers={"X-Thread-ID": "t1"})
        assert response.json() == {"words": ["echo hello"], "row": "running", "thread": "t1", "current": True}
        row = await ended(store_of(app), response.headers["x-run-id"])
        thread = await store_of(app).get_thread("t1")
        checkpoints = [one async for one in app.tracker.checkpointer.alist({"configurable": {"thread_id": "t1"}})]
    assert row["status"] == "success"
    assert row["http_status"] == 200
    assert row["thread_id"] == "t1"
    assert row["kwargs"] == {"method": "POST", "path": "/chat"}
    assert row["checkpoint_count"] == len(checkpoints) == 3
    assert row["last_checkpoint_id"] == checkpoints[0].checkpoint["id"]
    assert row["first_checkpoint_id"] == checkpoints[-1].checkpoint["id"]
    assert {one.metadata["run_id"] for one in checkpoints} == {row["run_id"]}
    assert row["finished_at"] is not None
    assert row["finished_at"] >= row["started_at"]
    assert thread is not None
    assert thread["status"] == "idle"


async def test_two_invocations_in_one_request_keep_both_inputs(settings: SkeinoSettings) -> None:
    app = RunMiddleware(chat(), settings=settings)
    async with connected(app) as client:
        await client.post("/chat", json=["one", "two"], headers={"X-Thread-ID": "t1"})
        state = await client.get("/chat", headers={"X-Thread-ID": "t1"})
    assert state.json()["words"] == ["one", "echo one", "two", "echo two"]


async def test_a_run_without_a_thread_gets_a_new_one_which_is_sent_back(settings: SkeinoSettings) -> None:
    app = RunMiddleware(chat(), settings=settings)
    async with connected(app) as client:
        response = await client.post("/chat", json=["hello"])
        minted = response.headers["x-thread-id"]
        assert response.json()["thread"] == minted
        row = await ended(store_of(app), response.headers["x-run-id"])
        assert row["thread_id"] == minted
        again = await client.post("/chat", json=["again"], headers={"X-Thread-ID": minted})
        assert "x-thread-id" not in again.headers
        state = await client.get("/chat", headers={"X-Thread-ID": minted})
    assert state.json()["words"] == ["hello", "echo hello", "again", "echo again"]


async def test_a_request_that_touches_no_thread_is_a_run_without_one(settings: SkeinoSettings) -> None:
    app = RunMiddleware(answering(), settings=settings)
    async with connected(app) as client:
        response = await client.post("/")
        row = await ended(store_of(app), response.headers["x-run-id"])
        assert row["thread_id"] is None
        assert await store_of(app).search_threads() == []
        assert "x-thread-id" not in response.headers


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_reading_requests_create_no_thread_and_do_not_make_it_busy(settings: SkeinoSettings, method: str) -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["thread"] = await scope["state"]["metadata_store"].get_thread("t1")
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        response = await client.request(method, "/", headers={"X-Thread-ID": "t1"})
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] is None
        assert seen.pop("thread") is None
        assert await store_of(wrapped).get_thread("t1") is None
        await store_of(wrapped).create_thread("t1")
        response = await client.request(method, "/", headers={"X-Thread-ID": "t1"})
        assert seen["thread"]["status"] == "idle"
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] == "t1"


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_head_and_options_are_not_tracked(settings: SkeinoSettings, method: str) -> None:
    app = RunMiddleware(answering(), settings=settings)
    async with connected(app) as client:
        response = await client.request(method, "/")
        assert response.status_code == 200
        assert "x-run-id" not in response.headers
        assert await store_of(app).search_runs() == []


@pytest.mark.parametrize(
    ("status", "run_status"), [(200, "success"), (302, "success"), (404, "success"), (422, "success"), (503, "error")]
)
async def test_the_status_follows_the_response(settings: SkeinoSettings, status: int, run_status: str) -> None:
    app = RunMiddleware(answering(status), settings=settings)
    async with connected(app) as client:
        response = await client.post("/", headers={"X-Thread-ID": "t"})
        row = await ended(store_of(app), response.headers["x-run-id"])
        assert (row["status"], row["http_status"]) == (run_status, status)
        thread = await store_of(app).get_thread("t")
        assert thread is not None
        assert thread["status"] == ("error" if run_status == "error" else "idle")


async def test_an_exception_makes_the_run_an_error_and_its_message_is_scrubbed(settings: SkeinoSettings) -> None:
    app = RunMiddleware(chat(), settings=settings)
    async with connected(app) as client:
        response = await client.post("/chat", json=["fail"], headers={"X-Thread-ID": "t1"})
        assert response.status_code == 500
        (run,) = await store_of(app).search_runs()
        row = await ended(store_of(app), run["run_id"])
        thread = await store_of(app).get_thread("t1")
    assert row["status"] == "error"
    assert row["error"] is not None
    assert row["error"]["code"] == "exception"
    assert row["error"]["type"] == "RuntimeError"
    assert row["error"]["message"].startswith("before the response: the node failed")
    assert "hunter2" not in row["error"]["message"]
    assert row["http_status"] is None
    assert thread is not None
    assert thread["status"] == "error"


@pytest.mark.parametrize("outside", [False, True])
async def test_an_exception_that_a_framework_answers_came_before_that_answer(outside: bool) -> None:
    async def handle(request: Request) -> Response:
        raise ValueError("boom")

    tracker = RunTracker(SkeinoSettings())
    app: Any = Starlette(routes=[Route("/", handle, methods=["POST"])], lifespan=tracker.lifespan)
    if outside:
        app = RunMiddleware(app, tracker=tracker)
    else:
        app.add_middleware(RunMiddleware, tracker=tracker)
    async with connected(app) as client:
        assert (await client.post("/")).status_code == 500
        (run,) = await tracker.metadata_store.search_runs()
        row = await ended(tracker.metadata_store, run["run_id"])
    assert row["error"] is not None
    assert (row["error"]["type"], row["error"]["message"]) == ("ValueError", "before the response: boom")


@pytest.mark.parametrize(
    ("raised", "outcome"),
    [(None, ("interrupted", "client_disconnected")), (FileNotFoundError("report.pdf"), ("error", "exception"))],
)
async def test_a_server_that_raises_what_it_cannot_send_has_a_client_that_left(
    raised: OSError | None, outcome: tuple[str, str]
) -> None:
    """As ASGI HTTP has it since specification 2.4; another `OSError` is the application's own."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await answering()(scope, receive, send)
        except OSError as exc:
            raise raised or exc from None

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("gone")

    wrapped = RunMiddleware(app, settings=SkeinoSettings())
    async with wrapped.tracker.lifespan():
        with pytest.raises(OSError, match="gone" if raised is None else "report"):
            await wrapped({"type": "http", "method": "POST", "path": "/", "headers": [], "state": {}}, receive, send)
        (run,) = await store_of(wrapped).search_runs()
        row = await ended(store_of(wrapped), run["run_id"])
    assert row["error"] is not None
    assert (row["status"], row["error"]["code"]) == outcome


@pytest.mark.parametrize("status", [200, 204])
@pytest.mark.parametrize("then", ["cancelled", "OSError", "ClientDisconnect"])
async def test_a_client_that_has_all_of_the_response_may_leave_before_its_end_is_sent(
    settings: SkeinoSettings, status: int, then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Quart and Starlette send what has a length in parts: an empty part comes last, and is cancelled, or fails."""
    held: list[tuple[str, ...]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        state = scope["state"]
        await compiled(state["checkpointer"]).ainvoke({"words": ["hello"]}, state["run"].config)
        headers = [(b"content-length", b"10")] if status == 200 else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in (b"hello", b"world") if status == 200 else ():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        last = send({"type": "http.response.body", "body": b"", "more_body": False})
        if then == "cancelled":
            monkeypatch.setattr(Run, "release_threads", lambda run: [asyncio.get_running_loop().create_future()])
            sending = asyncio.create_task(last)
            await asyncio.sleep(0.01)  # it waits for the threads to be released
            monkeypatch.undo()
            sending.cancel()
            await asyncio.wait([sending])
            return
        try:
            await last
        except OSError:
            if then == "ClientDisconnect":
                raise ClientDisconnect from None
            raise

    async def send(message: Any) -> None:
        queue = await store.get_queue("t")
        held.append(queue.run_ids)
        if message.get("body") == b"":
            raise OSError("gone")

    wrapped = RunMiddleware(app, settings=settings)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-thread-id", b"t")], "state": {}}
    async with wrapped.tracker.lifespan():
        store: Any = store_of(wrapped)
        try:
            await wrapped(scope, None, send)
        except (OSError, ClientDisconnect):
            assert then != "cancelled"
        (run,) = await store.search_runs()
        row = await ended(store, run["run_id"])
        thread = await store.get_thread("t")
    assert row["status"] == "success", row["error"]
    assert thread["status"] == "idle"
    assert held[:-1] if then != "cancelled" else held
    assert all(held[:-1]), "it is held until the last message"
    assert then == "cancelled" or held[-1] == ()


async def test_a_client_that_leaves_while_its_stream_still_works_has_left_before_its_end(tmp_path: Path) -> None:
    """It has as many bytes as it was told, but the graph goes on: nobody may take its thread, and it is cut off."""
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        state = scope["state"]
        await compiled(state["checkpointer"]).ainvoke({"words": ["hello"]}, state["run"].config)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello", "more_body": True})
        assert (await store.get_queue("t")).run_ids == (state["run"].run_id,)
        assert (await receive())["type"] == "http.disconnect"  # and is cancelled for that

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        pass

    wrapped = RunMiddleware(app, settings=settings)
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"x-thread-id", b"t")], "state": {}}
    async with wrapped.tracker.lifespan():
        store: Any = store_of(wrapped)
        await wrapped(scope, receive, send)
        (run,) = await store.search_runs()
        assert (await ended(store, run["run_id"]))["status"] == "interrupted"


async def test_a_pause_for_a_human_is_a_success_on_an_interrupted_thread(settings: SkeinoSettings) -> None:
    from langgraph.types import Command

    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph, config = compiled(scope["state"]["checkpointer"]), scope["state"]["run"].config
        if scope["path"] == "/state":
            await graph.aget_state(config)
        else:
            await graph.ainvoke({"words": ["pause"]} if scope["path"] == "/ask" else Command(resume="yes"), config)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        headers = {"X-Thread-ID": "t1"}
        asked = await ended(store_of(wrapped), (await client.post("/ask", headers=headers)).headers["x-run-id"])
        paused = await store_of(wrapped).get_thread("t1")
        reader = await ended(store_of(wrapped), (await client.get("/state", headers=headers)).headers["x-run-id"])
        still = await store_of(wrapped).get_thread("t1")
        answered = await ended(store_of(wrapped), (await client.post("/yes", headers=headers)).headers["x-run-id"])
        done = await store_of(wrapped).get_thread("t1")
        history = compiled(wrapped.tracker.checkpointer).aget_state_history({"configurable": {"thread_id": "t1"}})
        written = [(one.metadata["run_id"], one.config["configurable"]["checkpoint_id"]) async for one in history]
    assert asked["run_id"] != answered["run_id"]
    for run in (asked, answered):  # the ledger says which checkpoints each wrote
        ids = sorted(checkpoint_id for run_id, checkpoint_id in written if run_id == run["run_id"])
        ledger = (run["checkpoint_count"], run["first_checkpoint_id"], run["last_checkpoint_id"])
        assert ledger == (len(ids), ids[0], ids[-1])
    assert len(written) == asked["checkpoint_count"] + answered["checkpoint_count"]
    assert (asked["status"], asked["paused"]) == ("success", True)
    assert paused is not None
    assert paused["status"] == "interrupted"
    assert (reader["status"], reader["paused"]) == ("success", False)
    assert still is not None
    assert still["status"] == "interrupted"  # who only reads says nothing about the thread
    assert (answered["status"], answered["paused"]) == ("success", False)
    assert done is not None
    assert done["status"] == "idle"


async def test_what_the_handler_adds_to_the_runs_metadata_is_kept(settings: SkeinoSettings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["run"].metadata["model"] = "fake"
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["metadata"] == {"model": "fake"}


async def test_metadata_that_no_store_can_hold_does_not_lose_the_runs_end(
    settings: SkeinoSettings, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["run"].metadata["model"] = object()
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        row = await ended(store_of(wrapped), response.headers["x-run-id"])
    assert (row["status"], row["metadata"]) == ("success", {})
    assert "left out" in caplog.text


async def test_the_handler_may_set_the_thread_itself(settings: SkeinoSettings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["state"]["run"].thread_id = "chosen"
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] == "chosen"
        assert await store_of(wrapped).get_thread("chosen") is not None


async def test_the_saver_learns_the_thread_from_the_graphs_config(settings: SkeinoSettings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph = compiled(scope["state"]["checkpointer"])
        await graph.ainvoke({"words": ["hi"]}, {"configurable": {"thread_id": "from-config"}})
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] == "from-config"


async def test_a_handler_may_delete_the_thread_it_works_on(settings: SkeinoSettings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        run = scope["state"]["run"]
        await compiled(scope["state"]["checkpointer"]).ainvoke({"words": ["hi"]}, run.config)
        if scope["path"] == "/delete":
            await scope["state"]["persistence"].delete_thread(run.thread_id)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        first = await client.post("/", headers={"X-Thread-ID": "t1"})
        await ended(store_of(wrapped), first.headers["x-run-id"])  # else it counts as active
        response = await client.post("/delete", headers={"X-Thread-ID": "t1"})
        assert response.status_code == 200
        async with wrapped.tracker.lifespan():
            assert await store_of(wrapped).get_thread("t1") is None
            config: Any = {"configurable": {"thread_id": "t1"}}
            assert await wrapped.tracker.checkpointer.aget_tuple(config) is None


@pytest.mark.parametrize("schemes", [("sqlite", "memory"), ("memory", "sqlite")])
async def test_a_graph_with_another_trackers_checkpointer_is_told_so(schemes: tuple[str, str], tmp_path: Path) -> None:
    """Whoever forgets `tracker=` has the default, in memory, beside what the graph was compiled with."""

    def settings_of(number: int) -> SkeinoSettings:
        uri = str(tmp_path / f"{number}.db") if schemes[number] == "sqlite" else None
        return SkeinoSettings(checkpointer_scheme=schemes[number], checkpointer_uri=uri)

    compiled_with = RunTracker(settings_of(0))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(ConfigurationError, match="compile the graph with the checkpointer of the tracker"):
            await compiled(compiled_with.checkpointer).ainvoke({"words": ["hello"]}, scope["state"]["run"].config)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings_of(1))
    async with compiled_with.lifespan(), connected(wrapped) as client:
        assert (await client.post("/", headers={"X-Thread-ID": "t"})).status_code == 200
        assert [one async for one in compiled_with.checkpointer.alist(None)] == []


async def test_a_graph_without_the_checkpointer_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await compiled(InMemorySaver()).ainvoke({"words": ["hello"]}, scope["state"]["run"].config)
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=SkeinoSettings())
    async with connected(wrapped) as client:
        for _ in range(3):
            await client.post("/")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "If the graph was compiled with another one" in warnings[0]


@pytest.mark.parametrize("use", ["a graph", "a look", "nothing", "an answer of 400"])
async def test_and_no_run_is_that_has_the_checkpointer_or_no_graph(use: str, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        graph = compiled(scope["state"]["checkpointer"])
        if use == "a graph":
            await graph.ainvoke({"words": ["hello"]}, scope["state"]["run"].config)
        elif use == "a look":
            await graph.aget_state(scope["state"]["run"].config)
        elif use == "an answer of 400":
            assert scope["state"]["run"].config
        await answering(400 if use == "an answer of 400" else 200)(scope, receive, send)

    async with connected(RunMiddleware(app, settings=SkeinoSettings())) as client:
        await client.post("/")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


async def test_of_two_files_the_refusal_says_what_may_be_wrong(tmp_path: Path) -> None:
    one, other = (
        RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / name)))
        for name in ("one.db", "other.db")
    )
    async with one.lifespan(), other.lifespan(), one.run(thread_id="t") as run:
        with pytest.raises(RunInterruptedError, match="or the graph's checkpointer is another tracker's"):
            await compiled(other.checkpointer).ainvoke({"words": ["hello"]}, run.config)


async def test_a_graph_from_a_lifespan_before_goes_on_in_the_next() -> None:
    tracker, graph, found = RunTracker(SkeinoSettings()), None, list[int]()
    for _ in range(2):
        async with tracker.lifespan():
            graph = graph or compiled(tracker.checkpointer)
            async with tracker.run(thread_id="t") as run:
                found.append(len((await graph.ainvoke({"words": ["hello"]}, run.config))["words"]))
    assert found == [2, 4]


@pytest.mark.parametrize("folder", ["", "link"])
async def test_two_trackers_of_one_file_are_one_database(tmp_path: Path, folder: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    one, other = (
        RunTracker(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(path / "skeino.db")))
        for path in (tmp_path, tmp_path / folder)
    )
    async with one.lifespan(), other.lifespan():
        async with one.run(thread_id="t") as run:
            await compiled(other.checkpointer).ainvoke({"words": ["hello"]}, run.config)
        row = await one.metadata_store.get_run(run.run_id)
    assert row is not None
    assert (row["status"], row["checkpoint_count"]) == ("success", 3)


async def test_a_mere_look_at_a_thread_does_not_create_it(settings: SkeinoSettings) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await compiled(scope["state"]["checkpointer"]).aget_state({"configurable": {"thread_id": "peeked"}})
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        response = await client.post("/")
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] is None
        assert await store_of(wrapped).get_thread("peeked") is None
        await store_of(wrapped).create_thread("peeked")
        response = await client.post("/")
        assert (await ended(store_of(wrapped), response.headers["x-run-id"]))["thread_id"] == "peeked"
