"""The end of a run is written: later if need be, without its details if need be, but it is written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from skeino import SkeinoSettings, StoreError, StoreUnavailableError
from skeino.persistence import InMemoryMetadataStore, RunFinish, registry
from skeino_asgi import RunMiddleware, RunTracker
from tests.asgi.conftest import answering, connected, ended, store_of


class Moody(InMemoryMetadataStore):
    """A store that fails on demand: before it writes, or after."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[Exception] = []
        self.lost_answers = 0
        self.starts: list[str] = []

    async def finish_run(self, finish: RunFinish) -> bool:
        if self.failures:
            raise self.failures.pop(0)
        return await super().finish_run(finish)

    async def start_run(self, run_id: str, *, worker_id: str, **start: Any) -> None:
        self.starts.append(run_id)
        await super().start_run(run_id, worker_id=worker_id, **start)
        if self.lost_answers:
            self.lost_answers -= 1
            raise StoreUnavailableError("The answer was lost.", maybe_done=True)


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> Moody:
    store = Moody()
    monkeypatch.setattr(registry, "_checkpointers", {})
    monkeypatch.setattr(registry, "_metadata_stores", {})

    @registry.register_checkpointer("moody")
    @asynccontextmanager
    async def build(spec: Any) -> AsyncIterator[InMemorySaver]:
        yield InMemorySaver()

    @registry.register_metadata_store("moody")
    @asynccontextmanager
    async def build_store(spec: Any) -> AsyncIterator[Moody]:
        yield store

    return store


MOODY = SkeinoSettings(checkpointer_scheme="moody")


async def test_a_start_whose_answer_was_lost_is_tried_again_under_the_same_id(moody: Moody) -> None:
    moody.lost_answers = 2
    app = RunMiddleware(answering(), settings=MOODY)
    async with connected(app) as client:
        response = await client.post("/", headers={"X-Thread-ID": "t"})
        assert response.status_code == 200
        assert moody.starts == 3 * [response.headers["x-run-id"]]
        (row,) = await moody.search_runs()
        assert (await ended(moody, row["run_id"]))["status"] == "success"


@pytest.mark.parametrize("last", [StoreUnavailableError("lost", maybe_done=True), StoreUnavailableError("away")])
async def test_a_start_of_which_nothing_is_known_in_the_end_leaves_no_run_running(
    moody: Moody, monkeypatch: pytest.MonkeyPatch, last: StoreUnavailableError
) -> None:
    monkeypatch.setattr("skeino_asgi.row.PATIENCE", 0.1)
    start_run = moody.start_run

    async def moody_for_long(run_id: str, **start: Any) -> None:
        if moody.starts:
            moody.starts.append(run_id)
            raise last
        moody.lost_answers = 1
        await start_run(run_id, **start)

    monkeypatch.setattr(moody, "start_run", moody_for_long)
    app = RunMiddleware(answering(), settings=MOODY)
    async with connected(app) as client:
        assert (await client.post("/", headers={"X-Thread-ID": "t"})).status_code == 503
        (row,) = await moody.search_runs()
        row = await ended(moody, row["run_id"])
        assert row["error"] is not None
        assert (row["status"], row["error"]["code"]) == ("error", "store_unavailable")
        assert set(moody.starts) == {row["run_id"]}


async def test_a_start_that_was_refused_is_not_tried_again(moody: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(run_id: str, **start: Any) -> None:
        moody.starts.append(run_id)
        raise StoreUnavailableError("away")

    monkeypatch.setattr(moody, "start_run", away)
    async with connected(RunMiddleware(answering(), settings=MOODY)) as client:
        assert (await client.post("/")).status_code == 503
    assert len(moody.starts) == 1


async def test_no_run_begins_while_too_many_ends_are_due_and_none_of_those_is_lost(
    moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skeino_asgi.ends.MOST_DUE", 5)
    finish_run, away = moody.finish_run, [True]

    async def finish(finish: RunFinish) -> bool:
        if away:
            raise StoreUnavailableError("away")
        return await finish_run(finish)

    monkeypatch.setattr(moody, "finish_run", finish)
    app = RunMiddleware(answering(), settings=MOODY)
    async with connected(app) as client:
        answers = [await client.post("/") for _ in range(10)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [503] * 5
        assert answers[-1].headers["retry-after"] == "1"
        away.clear()
        for answer in answers[:5]:
            assert (await ended(moody, answer.headers["x-run-id"]))["status"] == "success"
        assert (await client.post("/")).status_code == 200


async def test_many_ends_that_are_due_are_written_together_once_the_store_is_back(
    moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, most = 0, 0
    finish_run, away = moody.finish_run, [True]

    async def slow(finish: RunFinish) -> bool:
        nonlocal at_once, most
        if away:
            raise StoreUnavailableError("away")
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return await finish_run(finish)

    monkeypatch.setattr(moody, "finish_run", slow)
    tracker = RunTracker(MOODY)
    async with tracker.lifespan():
        opening = tracker.openings.here()
        runs = [await tracker.run().__aenter__() for _ in range(500)]
        ends = [opening.finish(run, _success()) for run in runs]
        await opening.settled()
        away.clear()
        async with asyncio.timeout(5):
            await asyncio.gather(*(end.written() for end in ends if end is not None))
        assert most > 100


@pytest.mark.parametrize("failure", [StoreError("refused"), StoreUnavailableError("away"), RuntimeError("a bug")])
async def test_an_end_is_tried_again_until_it_is_written(moody: Moody, failure: Exception) -> None:
    moody.failures = [failure] * 4
    app = RunMiddleware(answering(), settings=MOODY)
    async with connected(app) as client:
        response = await client.post("/")
        assert (await ended(moody, response.headers["x-run-id"]))["status"] == "success"
        moody.failures = [failure] * 2
        response = await client.post("/")
        assert (await ended(moody, response.headers["x-run-id"]))["status"] == "success"


async def test_an_end_that_is_refused_for_ever_holds_up_no_other(moody: Moody, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = RunTracker(MOODY)
    async with tracker.lifespan():
        poisoned, other = await tracker.run().__aenter__(), await tracker.run().__aenter__()
        finish_run, away = moody.finish_run, [True]

        async def moody_about_one(finish: RunFinish) -> bool:
            if away[0] or finish["run_id"] == poisoned.run_id:
                raise StoreError("refused")
            return await finish_run(finish)

        monkeypatch.setattr(moody, "finish_run", moody_about_one)
        ends = [tracker.openings.here().finish(run, _success()) for run in (poisoned, other)]
        assert ends[0] is not None
        assert ends[1] is not None
        await asyncio.sleep(0)
        away[0] = False
        async with asyncio.timeout(5):
            await ends[1].written()
        assert not ends[0].is_written
        monkeypatch.undo()


async def test_an_end_that_is_written_while_it_is_being_retried_stops_no_other(
    moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own first attempt and the retries may both be at it."""
    tracker = RunTracker(MOODY)
    async with tracker.lifespan():
        first, second = await tracker.run().__aenter__(), await tracker.run().__aenter__()
        finish_run, retried, attempts = moody.finish_run, asyncio.Event(), 0

        async def moody_and_slow(finish: RunFinish) -> bool:
            nonlocal attempts
            if finish["run_id"] != first.run_id:
                raise StoreError("refused")
            attempts += 1
            if attempts == 1:
                await retried.wait()
                return await finish_run(finish)
            retried.set()
            await asyncio.sleep(0.05)  # meanwhile the first attempt comes through
            raise StoreError("refused")

        monkeypatch.setattr(moody, "finish_run", moody_and_slow)
        _, end = [tracker.openings.here().finish(run, _success()) for run in (first, second)]
        async with asyncio.timeout(5):
            await retried.wait()
            await asyncio.sleep(0.1)
            monkeypatch.undo()
            assert end is not None
            await end.written()


async def test_one_end_that_fails_at_shutdown_holds_up_no_other(moody: Moody) -> None:
    tracker = RunTracker(MOODY)
    async with tracker.lifespan():
        runs = [tracker.run(thread_id=f"t{number}") for number in range(4)]
        started = [await run.__aenter__() for run in runs]
        moody.failures = [StoreError("refused")] * 6  # all four at first, then two of them at shutdown
        for run in runs[:3]:
            opening = tracker.openings.here()
            opening.finish(started[runs.index(run)], _success())
    rows = [await moody.get_run(run.run_id) for run in started]
    assert [row is not None and row["status"] != "running" for row in rows] == [True] * 4


async def test_nothing_is_tried_any_more_once_it_is_closed(moody: Moody) -> None:
    tracker = RunTracker(MOODY)
    async with tracker.lifespan():
        async with tracker.run():
            pass
        moody.failures = [StoreUnavailableError("It is away.")] * 1000
        run = await tracker.run().__aenter__()
        tracker.openings.here().finish(run, _success())  # whose first attempt is under way when it is closed
    left = len(moody.failures)
    await asyncio.sleep(0.3)
    assert len(moody.failures) == left
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "skeino ends of runs"]


def _success() -> Any:
    from skeino_asgi.outcome import Outcome

    return Outcome("success")


async def test_the_end_of_a_block_says_when_its_end_could_not_be_written(
    moody: Moody, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skeino_asgi.tracker.FINISH_PATIENCE", 0.1)
    moody.failures = [StoreUnavailableError("away")] * 100
    tracker = RunTracker(MOODY)
    async with tracker.lifespan():
        with pytest.raises(StoreUnavailableError, match="not written yet"):
            async with tracker.run():
                pass
        moody.failures.clear()


@pytest.mark.parametrize("status", [0, 99, 1000, True, "200"])
async def test_a_status_that_http_does_not_have_loses_no_end(settings: SkeinoSettings, status: Any) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    wrapped = RunMiddleware(app, settings=settings)

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        pass

    async with wrapped.tracker.lifespan():
        await wrapped({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        (row,) = await store_of(wrapped).search_runs()
        row = await ended(store_of(wrapped), row["run_id"])
        assert (row["status"], row["http_status"]) == ("success", None)


async def test_an_exception_that_cannot_be_shown_loses_no_end(settings: SkeinoSettings) -> None:
    class Text(str):
        __slots__ = ()

        def __format__(self, specification: str) -> str:
            raise ZeroDivisionError

    class NastyError(Exception):
        def __str__(self) -> str:
            return Text("nasty")

    tracker = RunTracker(settings)
    async with tracker.lifespan():
        with pytest.raises(NastyError):
            async with tracker.run() as run:
                raise NastyError
        row = await ended(tracker.metadata_store, run.run_id)
        assert row["error"] is not None
        assert row["error"]["message"] == "in the run: nasty"


async def test_a_generator_that_is_closed_in_its_run_leaves_it_interrupted(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():

        async def words() -> AsyncIterator[str]:
            async with tracker.run() as run:
                yield run.run_id

        generator = words()
        run_id = await anext(generator)
        await generator.aclose()  # type: ignore[attr-defined]
        assert (await ended(tracker.metadata_store, run_id))["status"] == "interrupted"
