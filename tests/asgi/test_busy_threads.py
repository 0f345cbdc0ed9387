"""Two requests on one thread: what their clients are told, and when the thread is free again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import StreamingResponse

from skeino import Run, SkeinoSettings, current_run
from skeino.errors import RunInterruptedError, ThreadBusyError
from skeino_asgi import RunMiddleware, RunTracker, combine_lifespans
from tests.asgi.conftest import answering, connected, ended, store_of
from tests.asgi.graphs import compiled

ON_T = {"X-Thread-ID": "t"}


class Scene:
    """An application whose requests hold their thread until they are let go."""

    def __init__(self, settings: SkeinoSettings, **options: Any) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.go_on = asyncio.Event()
        self.app = RunMiddleware(self._serve, settings=settings, **options)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        run, saver = scope["state"]["run"], scope["state"]["checkpointer"]
        if (strategy := scope["query_string"].decode()) not in ("", "hold", "stream", "write"):
            run.multitask_strategy = strategy
        if scope["query_string"] == b"stream":
            start = {"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"text/event-stream")]}
            await send(start)
            await send({"type": "http.response.body", "body": b"data: one\n\n", "more_body": True})
        await compiled(saver).ainvoke({"words": [run.run_id]}, run.config)
        self.begun.put_nowait(run.run_id)
        if scope["query_string"] in (b"hold", b"stream"):
            await self.go_on.wait()
            await compiled(saver).ainvoke({"words": ["again"]}, run.config)
        await answering()(scope, receive, send)

    async def holding(self, client: Any, way: str = "hold") -> asyncio.Task[Any]:
        task = asyncio.create_task(client.post(f"/?{way}", headers=ON_T))
        await self.begun.get()
        return task


async def test_a_refused_request_is_told_so_and_when_to_come_again(settings: SkeinoSettings) -> None:
    scene = Scene(settings)
    async with connected(scene.app) as client:
        first = await scene.holding(client)
        refused = await client.post("/?reject", headers=ON_T)
        assert refused.status_code == 409
        assert refused.json() == {
            "error": "thread_busy",
            "detail": "Another run works on this thread: try again when it has ended.",
        }
        assert refused.headers["retry-after"] == "1"
        row = await ended(store_of(scene.app), refused.headers["x-run-id"])
        assert (row["status"], row["http_status"]) == ("interrupted", 409)
        assert row["error"] is not None
        assert (row["error"]["code"], row["thread_id"]) == ("thread_busy", "t")
        scene.go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/?reject", headers=ON_T)).status_code == 200


async def test_an_interrupted_requests_client_gets_an_answer(settings: SkeinoSettings) -> None:
    scene = Scene(settings)
    async with connected(scene.app) as client:
        first = await scene.holding(client)
        assert (await client.post("/?interrupt", headers=ON_T)).status_code == 200
        scene.go_on.set()
        answer = await first
        assert (answer.status_code, answer.json()["error"]) == (409, "run_interrupted")
        row = await ended(store_of(scene.app), answer.headers["x-run-id"])
        assert (row["status"], row["http_status"]) == ("interrupted", 409)
        assert row["error"] is not None
        assert row["error"]["code"] == "run_interrupted"


async def test_an_interrupted_stream_of_events_gets_a_last_one(settings: SkeinoSettings) -> None:
    scene = Scene(settings)
    async with connected(scene.app) as client:
        first = await scene.holding(client, "stream")
        assert (await client.post("/?interrupt", headers=ON_T)).status_code == 200
        scene.go_on.set()
        events = (await first).text.split("\n\n")
        assert events[0] == "data: one"
        name, _, data = events[1].partition("\n")
        assert name == "event: error"
        assert json.loads(data.removeprefix("data: "))["error"] == "run_interrupted"
        row = await ended(store_of(scene.app), (await first).headers["x-run-id"])
        assert (row["status"], row["http_status"]) == ("interrupted", 200)


async def test_the_next_message_finds_its_thread_free_as_soon_as_the_last_is_answered(
    settings: SkeinoSettings,
) -> None:
    scene = Scene(settings)
    async with connected(scene.app) as client:
        for _ in range(20):
            assert (await client.post("/?reject", headers=ON_T)).status_code == 200


async def test_requests_on_one_thread_take_their_turn(settings: SkeinoSettings) -> None:
    scene = Scene(settings)
    async with connected(scene.app) as client:
        answers = await asyncio.gather(*(client.post("/", headers=ON_T) for _ in range(8)))
        assert [answer.status_code for answer in answers] == [200] * 8
        state = await compiled(scene.app.tracker.checkpointer).aget_state({"configurable": {"thread_id": "t"}})
    words = [word for word in state.values["words"] if word in {answer.headers["x-run-id"] for answer in answers}]
    assert sorted(words) == sorted(answer.headers["x-run-id"] for answer in answers), "an input was lost"


async def test_with_claim_a_busy_thread_is_refused_before_the_handler_starts(settings: SkeinoSettings) -> None:
    rejecting = settings.model_copy(update={"multitask_strategy": "reject"})
    called: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])
        if scope["path"] == "/hold":
            await go_on.wait()
        await answering()(scope, receive, send)

    go_on = asyncio.Event()
    wrapped = RunMiddleware(app, settings=rejecting, claim=lambda scope: scope["path"] != "/unclaimed")
    async with connected(wrapped) as client:
        first = asyncio.create_task(client.post("/hold", headers=ON_T))
        while not called:
            await asyncio.sleep(0.005)
        refused = await client.post("/second", headers=ON_T)
        assert (refused.status_code, refused.json()["error"]) == (409, "thread_busy")
        assert (await client.post("/unclaimed", headers=ON_T)).status_code == 200
        assert (await client.post("/on-none")).status_code == 200
        go_on.set()
        assert (await first).status_code == 200
        assert (await client.post("/third", headers=ON_T)).status_code == 200
        assert called == ["/hold", "/unclaimed", "/on-none", "/third"]
        runs = await store_of(wrapped).search_runs(status="interrupted")
    assert [run["error"] and run["error"]["code"] for run in runs] == ["thread_busy"]


@pytest.mark.parametrize("record", ["always", "on_use"])
async def test_with_claim_a_reading_request_creates_no_thread(settings: SkeinoSettings, record: Any) -> None:
    wrapped = RunMiddleware(
        answering(), settings=settings, record=record, claim=["/*"], owner=lambda connection: connection.headers["x-me"]
    )
    async with connected(wrapped) as client:
        for method in ("GET", "DELETE"):
            assert (await client.request(method, "/", headers={**ON_T, "X-Me": "mallory"})).status_code == 200
        assert await store_of(wrapped).get_thread("t") is None
        assert (await client.post("/", headers={**ON_T, "X-Me": "ann"})).status_code == 200


# ── What frameworks make of it ───────────────────────────────────────────────────────────────────────────


def fast(settings: SkeinoSettings, handle: Callable[[Request], Awaitable[Any]], *, outside: bool) -> Any:
    """The handler in FastAPI, the middleware added to it or around it."""
    tracker = RunTracker(settings)
    app = FastAPI(lifespan=combine_lifespans(tracker.lifespan))
    app.add_api_route("/", handle, methods=["POST"], response_model=None)
    if outside:
        return RunMiddleware(app, tracker=tracker)
    app.add_middleware(RunMiddleware, tracker=tracker)
    return app


@pytest.mark.parametrize("outside", [False, True])
async def test_a_frameworks_500_becomes_409(settings: SkeinoSettings, outside: bool) -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def handle(request: Request) -> dict[str, str]:
        run = request.state.run
        run.multitask_strategy = request.query_params["strategy"]
        await compiled(request.state.checkpointer).ainvoke({"words": ["a"]}, run.config)
        begun.set()
        if "hold" in request.query_params:
            await go_on.wait()
        return {"run": run.run_id}

    async with connected(fast(settings, handle, outside=outside)) as client:
        first = asyncio.create_task(client.post("/?strategy=enqueue&hold=1", headers=ON_T))
        await begun.wait()
        refused = await client.post("/?strategy=reject", headers=ON_T)
        assert (refused.status_code, refused.json()["error"]) == (409, "thread_busy")
        assert "x-run-id" in refused.headers
        go_on.set()
        assert (await first).status_code == 200


async def test_an_application_may_answer_itself(settings: SkeinoSettings) -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def handle(request: Request) -> dict[str, str]:
        run = request.state.run
        run.multitask_strategy = "reject"
        try:
            await compiled(request.state.checkpointer).ainvoke({"words": ["a"]}, run.config)
        except ThreadBusyError:
            return {"answer": "I am still thinking."}
        begun.set()
        await go_on.wait()
        return {"answer": "done"}

    async with connected(fast(settings, handle, outside=False)) as client:
        first = asyncio.create_task(client.post("/", headers=ON_T))
        await begun.wait()
        second = await client.post("/", headers=ON_T)
        assert (second.status_code, second.json()) == (200, {"answer": "I am still thinking."})
        go_on.set()
        assert (await first).json() == {"answer": "done"}


async def test_a_background_task_claims_again_and_the_next_request_need_not_wait_for_it(
    settings: SkeinoSettings,
) -> None:
    go_on = asyncio.Event()
    seen: list[Any] = []

    async def handle(request: Request, tasks: BackgroundTasks) -> dict[str, str]:
        run, graph = request.state.run, compiled(request.state.checkpointer)
        await graph.ainvoke({"words": ["at once"]}, run.config)

        async def later() -> None:
            await go_on.wait()
            await graph.ainvoke({"words": ["later"]}, run.config)
            seen.append((await graph.aget_state(run.config)).values["words"])

        if "later" in request.query_params:
            tasks.add_task(later)
        return {}

    tracker = RunTracker(settings)
    app = FastAPI(lifespan=combine_lifespans(tracker.lifespan))
    app.add_api_route("/", handle, methods=["POST"])
    app.add_middleware(RunMiddleware, tracker=tracker)
    released = asyncio.Event()

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                released.set()

        await app(scope, receive, sending)

    async with connected(watched) as client:
        first = asyncio.create_task(client.post("/?later=1", headers=ON_T))
        async with asyncio.timeout(10):
            await released.wait()
            assert (await client.post("/", headers=ON_T)).status_code == 200
            go_on.set()
            assert (await first).status_code == 200
    assert len(seen) == 1
    assert [word for word in seen[0] if word in ("at once", "later")] == ["at once", "at once", "later"]


async def test_a_stream_releases_its_thread_before_its_end_is_sent(settings: SkeinoSettings) -> None:
    async def handle(request: Request) -> StreamingResponse:
        run = request.state.run
        run.multitask_strategy = "reject"

        async def words() -> AsyncIterator[str]:
            async for _ in compiled(request.state.checkpointer).astream({"words": ["a"]}, run.config):
                yield "word\n"

        return StreamingResponse(words())

    async with connected(fast(settings, handle, outside=False)) as client:
        for _ in range(10):
            answer = await client.post("/", headers=ON_T)
            assert answer.status_code == 200
            assert "word" in answer.text


async def test_an_error_that_only_comes_of_the_conflict_counts_as_one(settings: SkeinoSettings) -> None:
    """A handler that raises an error of its own from it, as many do."""
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        run = current_run()
        assert run is not None
        run.multitask_strategy = "reject"
        try:
            await compiled(scope["state"]["checkpointer"]).ainvoke({"words": ["a"]}, run.config)
        except ThreadBusyError as exc:
            raise RuntimeError("the assistant failed") from exc
        begun.set()
        await go_on.wait()
        await answering()(scope, receive, send)

    wrapped = RunMiddleware(app, settings=settings)
    async with connected(wrapped) as client:
        first = asyncio.create_task(client.post("/", headers=ON_T))
        await begun.wait()
        second = await client.post("/", headers=ON_T)
        assert (second.status_code, second.json()["error"]) == (409, "thread_busy")
        go_on.set()
        await first


async def refused_on_t(graph: Any) -> None:
    with pytest.raises(ThreadBusyError):
        await graph.ainvoke({"words": ["b"]}, {"configurable": {"thread_id": "t"}})


async def after_its_own(run: Run, graph: Any) -> None:
    await graph.ainvoke({"words": ["a"]}, run.config)
    await refused_on_t(graph)
    await graph.ainvoke({"words": ["c"]}, run.config)


async def before_another(run: Run, graph: Any) -> None:
    await refused_on_t(graph)
    await graph.ainvoke({"words": ["c"]}, {"configurable": {"thread_id": "own"}})


@pytest.mark.parametrize("work", [after_its_own, before_another])
async def test_a_conflict_that_was_dealt_with_explains_no_later_error(settings: SkeinoSettings, work: Any) -> None:
    scene = Scene(settings)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["query_string"]:
            await scene.app.app(scope, receive, send)
            return
        run = scope["state"]["run"]
        run.multitask_strategy = "reject"
        await work(run, compiled(scope["state"]["checkpointer"]))
        await answering(500)(scope, receive, send)

    wrapped = RunMiddleware(app, tracker=scene.app.tracker)
    async with connected(wrapped) as client:
        first = await scene.holding(client)
        failed = await client.post("/", headers={"X-Thread-ID": "own"} if work is after_its_own else {})
        assert failed.status_code == 500
        row = await ended(store_of(wrapped), failed.headers["x-run-id"])
        assert row["error"] is not None
        assert (row["status"], row["error"]["code"]) == ("error", "http_error")
        scene.go_on.set()
        assert (await first).status_code == 200


async def test_a_claim_that_cannot_be_decided_on_leaves_no_run(settings: SkeinoSettings) -> None:
    def decide(scope: Any) -> bool:
        raise KeyError("tenant")

    wrapped = RunMiddleware(answering(), settings=settings, claim=decide)
    async with connected(wrapped) as client:
        assert (await client.post("/", headers=ON_T)).status_code == 500
        assert await store_of(wrapped).search_runs() == []


async def test_a_run_outside_of_requests_raises_what_it_is(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        graph = compiled(tracker.checkpointer)
        async with tracker.run(thread_id="t") as run:
            await graph.ainvoke({"words": ["a"]}, run.config)

            async def another() -> None:
                async with tracker.run(thread_id="t", multitask_strategy="interrupt") as other:
                    other.outer = None  # as in another task of the process
                    await graph.ainvoke({"words": ["b"]}, other.config)

            await another()
            with pytest.raises(RunInterruptedError):
                await graph.ainvoke({"words": ["c"]}, run.config)
