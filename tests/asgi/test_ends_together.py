"""Ends that come together: queued at once, without a task each, and each with its own fate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import psycopg
import pytest

from skeino import SkeinoSettings, StoreError, StoreUnavailableError
from skeino.persistence import InMemoryMetadataStore, RunFinish
from skeino.persistence.group_commit import GroupCommit
from skeino.runs import Run
from skeino_asgi import RunMiddleware, RunTracker
from skeino_asgi.ends import End
from skeino_asgi.outcome import Outcome, succeeded
from tests.asgi.conftest import answering, connected, store_of


class Promising(InMemoryMetadataStore):
    """A store that promises an answer, and gives it when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[RunFinish, asyncio.Future[bool]]] = []
        self.refuses: Exception | None = None

    def finish_run(self, finish: RunFinish) -> Awaitable[bool]:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append((finish, asyncio.get_running_loop().create_future()))
        return self.asked[-1][1]

    async def answer(self, number: int) -> None:
        finish, promise = self.asked[number]
        promise.set_result(await super().finish_run(finish))

    async def answer_later(self, number: int) -> None:
        await asyncio.sleep(0.05)
        await self.answer(number)


async def test_a_request_that_goes_well_takes_no_task_for_its_end(settings: SkeinoSettings) -> None:
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> asyncio.Task[Any]:
        made.append(coroutine.__qualname__)
        return asyncio.Task(coroutine, loop=loop, **more)

    app = RunMiddleware(answering(), settings=settings)
    async with connected(app) as client:
        await client.post("/")  # opens what is opened once
        await app.tracker.settled()
        asyncio.get_running_loop().set_task_factory(factory)
        response = await client.post("/")
        await app.tracker.settled()
        asyncio.get_running_loop().set_task_factory(None)
        row = await store_of(app).get_run(response.headers["x-run-id"])
        assert row is not None
        assert row["status"] == "success"
    assert [name for name in made if "Ends" in name] == []
    if settings.checkpointer_scheme == "memory":
        assert made == []


async def test_ends_that_come_together_are_written_together(
    settings: SkeinoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    take = GroupCommit._take

    def counted(group: GroupCommit[Any], size: int) -> list[Any]:
        sizes.append(size)
        return take(group, size)

    monkeypatch.setattr(GroupCommit, "_take", counted)
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        runs = await started(tracker, 40)
        sizes.clear()
        ends = finished(tracker, runs)
        await tracker.settled()
        assert all(end.is_written for end in ends)
        assert sizes == ([] if settings.checkpointer_scheme == "memory" else [40])
        rows = await tracker.metadata_store.search_runs()
        assert [row["status"] for row in rows] == ["success"] * 40


async def test_one_bad_end_among_good_ones_is_written_without_its_details(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        runs = await started(tracker, 5)
        opening = tracker.openings.here()
        for run in runs:
            status = 5000 if run is runs[2] else 201  # no HTTP status has four digits
            opening.finish(run, Outcome("success", None, status))
        await tracker.settled()
        rows = [await tracker.metadata_store.get_run(run.run_id) for run in runs]
        found = [(row["status"], row["http_status"]) for row in rows if row is not None]
        assert found == [("success", None if number == 2 else 201) for number in range(5)]


async def test_an_end_that_has_no_answer_holds_up_no_other(promising: Promising) -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        first, second = finished(tracker, await started(tracker, 2))
        await promising.answer(1)
        async with asyncio.timeout(1):
            await second.written()
        assert not first.is_written
        await promising.answer(0)
        await tracker.settled()
        assert first.is_written


async def test_the_end_of_a_block_waits_for_the_answer(promising: Promising) -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():

        async def block() -> None:
            async with tracker.run():
                pass

        task = asyncio.create_task(block())
        await asyncio.wait([task], timeout=0.05)
        assert not task.done()
        await promising.answer(0)
        async with asyncio.timeout(1):
            await task


@pytest.mark.parametrize("failure", [StoreError("refused"), StoreUnavailableError("away"), RuntimeError("a bug")])
@pytest.mark.parametrize("at_once", [True, False])
async def test_an_end_whose_answer_is_a_failure_is_tried_again(
    promising: Promising, failure: Exception, at_once: bool
) -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        promising.refuses = failure if at_once else None
        (end,) = finished(tracker, await started(tracker, 1))
        if not at_once:
            promising.asked.pop()[1].set_exception(failure)
        await asyncio.sleep(0)
        promising.refuses = None
        async with asyncio.timeout(5):
            while not promising.asked:
                await asyncio.sleep(0.01)
            await promising.answer(0)
            await end.written()


async def test_an_end_whose_answer_is_cancelled_is_written_when_closing(promising: Promising) -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        (end,) = finished(tracker, await started(tracker, 1))
        promising.asked.pop()[1].cancel()
        await tracker.settled()
        assert not end.is_written

        async def answer() -> None:
            while not promising.asked:
                await asyncio.sleep(0.01)
            await promising.answer(0)

        answering = asyncio.create_task(answer())
    answering.cancel()
    assert end.is_written


async def test_closing_waits_for_an_answer_and_does_not_ask_again(promising: Promising) -> None:
    tracker = RunTracker(SkeinoSettings())
    async with tracker.lifespan():
        (end,) = finished(tracker, await started(tracker, 1))
        answering = asyncio.create_task(promising.answer_later(0))
    await answering
    assert end.is_written
    assert len(promising.asked) == 1


@pytest.mark.postgres
async def test_an_end_that_waits_for_another_session_holds_up_no_other(postgres_dsn: str) -> None:
    tracker = RunTracker(SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=postgres_dsn))
    async with tracker.lifespan():
        runs = await started(tracker, 5)
        async with await psycopg.AsyncConnection.connect(postgres_dsn) as session:
            await session.execute("SELECT 1 FROM app_runs WHERE run_id = %s FOR UPDATE", (runs[2].run_id,))
            ends = finished(tracker, runs)
            async with asyncio.timeout(5):
                for end in ends[:2] + ends[3:]:
                    await end.written()
                async with tracker.run():  # nor one that comes later
                    pass
            assert not ends[2].is_written
        async with asyncio.timeout(5):
            await ends[2].written()


@pytest.mark.parametrize("number", [1, 3, 600])
def test_ends_that_are_queued_when_the_event_loop_ends_are_written(settings: SkeinoSettings, number: int) -> None:
    if settings.checkpointer_scheme == "memory":
        return  # its rows end with the event loop
    tracker = RunTracker(settings)
    run_ids: list[str] = []

    async def main() -> None:
        await tracker.openings.ready()
        runs = await started(tracker, number)
        run_ids.extend(run.run_id for run in runs)
        finished(tracker, runs)

    async def look() -> set[str]:
        async with tracker.lifespan():
            rows = [await tracker.metadata_store.get_run(run_id) for run_id in run_ids]
            return {"gone" if row is None else row["status"] for row in rows}

    asyncio.run(main())
    assert asyncio.run(look()) == {"success"}


@pytest.fixture
def promising(monkeypatch: pytest.MonkeyPatch) -> Promising:
    store = Promising()
    monkeypatch.setattr("skeino.persistence.memory.InMemoryMetadataStore", lambda **_: store)
    return store


async def started(tracker: RunTracker, number: int) -> list[Run]:
    """Runs in progress, which no block ends."""
    return list(await asyncio.gather(*(tracker.run().__aenter__() for _ in range(number))))


def finished(tracker: RunTracker, runs: list[Run]) -> list[End]:
    """The ends of these runs, queued together."""
    ends = [tracker.openings.here().finish(run, succeeded()) for run in runs]
    return [end for end in ends if end is not None]
