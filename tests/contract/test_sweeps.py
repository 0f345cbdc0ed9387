"""Sweeps, on every backend: the contract, both halves, the default `ttl`, processes that die, what is looked at."""

import asyncio
import logging
import operator
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, TypedDict

import psycopg
import pytest
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph
from pymongo import MongoClient

from skeino import RunInterruptedError, SkeinoSettings, StoreUnavailableError
from skeino.persistence import InMemoryMetadataStore, MetadataStoreProtocol, Persistence, open_persistence
from skeino.persistence.claims import ClaimingStore
from skeino.persistence.mongodb import history as mongodb_history
from skeino.persistence.mongodb.documents import microseconds
from skeino.persistence.postgres import sweeps as postgres_sweeps
from skeino.persistence.rows import ThreadTTL
from skeino.persistence.sqlite import sweeps as sqlite_sweeps
from skeino.persistence.sweeper import Sweeper
from skeino.persistence.sweeping import SWEEP_SECONDS, Sweep
from skeino.runs import new_id
from skeino.testing import WORKER, SweepContract, everything, finished, started, the_run, the_thread
from skeino.testing.leases import keeping
from skeino.testing.sweeps import BRIEFLY, Recorder, aged, due, sweeps_of
from skeino_asgi import RunTracker
from tests.contract.backends import ALL, DURABLE, MONGODB, POSTGRES, REDIS, SQLITE, settings_of
from tests.savers.graphs import config_of, plain, said
from tests.servers.mongodb import LocalMongoServer

HALF: ThreadTTL = {"strategy": "keep_latest", "ttl": 0.5}


class TestSweeps(SweepContract):
    """See `skeino.testing`."""


async def with_state(persistence: Persistence, thread_id: str, strategy: Any = "delete", **more: Any) -> None:
    """A thread whose time is up, with two turns of a graph; its row comes last, and is as old as `aged` makes it."""
    graph = plain(persistence.checkpointer)
    for word in ("one", "two"):
        await graph.ainvoke(said(word), config_of(thread_id))
    await aged(persistence.metadata_store, thread_id, strategy, **more)


async def checkpoints(persistence: Persistence, thread_id: str) -> list[Any]:
    return [one async for one in persistence.checkpointer.alist(config_of(thread_id))]


async def swept(persistence: Persistence, **more: Any) -> Any:
    """The report of one sweep."""
    sweeps = sweeps_of(persistence.metadata_store)
    worker_id = f"w-{new_id()}"
    assert await sweeps.begin(worker_id, seconds=SWEEP_SECONDS, interval=0.0) == 0.0
    return await Sweep(sweeps, persistence.checkpointer, worker_id, more.pop("retention", None), **more).run()


# ── Both halves ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("settings", [*ALL, REDIS], indirect=True)
async def test_a_sweep_deletes_and_prunes_in_both_halves(persistence: Persistence) -> None:
    await with_state(persistence, "gone")
    await with_state(persistence, "pruned", "keep_latest")
    await with_state(persistence, "kept", age=59)
    await with_state(persistence, "busy")
    run_id = await started(persistence.metadata_store, "busy")
    for thread_id in ("gone", "pruned", "kept"):
        await finished(persistence.metadata_store, thread_id, thread_status=None)
    graph = plain(persistence.checkpointer)
    states = {one: (await graph.aget_state(config_of(one))).values for one in ("pruned", "kept", "busy")}
    report = await swept(persistence)
    assert (report.deleted_threads, report.pruned_threads, report.kept_threads) == (1, 1, 1)
    assert await checkpoints(persistence, "gone") == []
    assert len(await checkpoints(persistence, "pruned")) == 1
    assert [len(await checkpoints(persistence, one)) for one in ("kept", "busy")] == [6, 6]
    for thread_id, state in states.items():
        assert (await graph.aget_state(config_of(thread_id))).values == state
    threads, runs = await everything(persistence.metadata_store)
    assert sorted(row["thread_id"] for row in threads) == ["busy", "kept", "pruned"]
    assert {row["run_id"] for row in runs} >= {run_id}
    assert len(runs) == 3
    after = await graph.ainvoke(said("three"), config_of("pruned"))
    assert len(after["messages"]) == len(states["pruned"]["messages"]) + 2, "the thread goes on where it was"
    assert (await swept(persistence)).did_something is False


@pytest.mark.parametrize("settings", DURABLE, indirect=True)
async def test_a_pruned_thread_whose_run_is_ended_for_a_dead_worker_is_due_again(persistence: Persistence) -> None:
    store = persistence.metadata_store
    await aged(store, "t", "keep_latest", ttl=BRIEFLY)
    assert (await swept(persistence)).pruned_threads == 1
    await started(store, "t")
    async with keeping(store) as keeper:
        await keeper.lose(WORKER)
        assert await keeper(keeper.leases.end_runs_of_lost, 10) == 1
    await asyncio.sleep(0.1)
    assert await due(store) == ["t"]


def _appended(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(item for write in writes for item in write)]


class Items(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(_appended, list)]


@pytest.mark.parametrize("settings", DURABLE, indirect=True)
async def test_a_thread_with_delta_channels_is_told_of_and_left_and_the_others_are_pruned(
    persistence: Persistence,
) -> None:
    builder = StateGraph(Items)
    builder.add_node("one", lambda state: {"items": ["one"]})
    builder.add_edge(START, "one")
    graph: Any = builder.compile(checkpointer=persistence.checkpointer)
    await aged(persistence.metadata_store, "delta", "keep_latest", age=1000)
    for _ in range(2):
        await graph.ainvoke({"items": ["input"]}, config_of("delta"))
    await with_state(persistence, "plain", "keep_latest")
    before = len(await checkpoints(persistence, "delta"))
    state = await graph.aget_state(config_of("delta"))
    report = await swept(persistence)
    assert (report.unprunable_threads, report.pruned_threads) == (1, 1)
    assert len(await checkpoints(persistence, "delta")) == before
    assert await graph.aget_state(config_of("delta")) == state
    assert (await swept(persistence)).unprunable_threads == 0, "it is told once"


async def test_a_checkpointer_that_cannot_prune_is_told_of_once_and_the_others_are_deleted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = InMemoryMetadataStore()
    persistence = Persistence(InMemorySaver(), store)
    await aged(store, "to prune", "keep_latest")
    await aged(store, "to delete")
    async with Sweeper(persistence, "w", interval=0.01, run_retention=None):

        async def deleted() -> bool:
            return await store.get_thread("to delete") is None

        await until(deleted)
        await asyncio.sleep(0.2)  # for some more sweeps
    assert await due(store) == ["to prune"]
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == ["This checkpointer cannot prune: threads with a ttl of 'keep_latest' stay as they are."]


async def test_a_thread_that_cannot_be_dealt_with_keeps_no_other_waiting_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Recorder):
        async def adelete_thread(self, thread_id: str) -> None:
            if thread_id.startswith("bad"):
                raise ValueError("its state cannot be read")
            await super().adelete_thread(thread_id)

    class Away(Recorder):
        tried = 0

        async def adelete_thread(self, thread_id: str) -> None:
            self.tried += 1
            raise StoreUnavailableError("It is away.")

    class AwayByTurns(Recorder):
        tried = 0

        async def adelete_thread(self, thread_id: str) -> None:
            self.tried += 1
            raise StoreUnavailableError("It is away.") if self.tried % 2 else ValueError("its state cannot be read")

    store, saver = InMemoryMetadataStore(), Broken()
    for number in range(5):
        await aged(store, f"bad{number}", age=1000)
    await aged(store, "good")
    report = await swept(Persistence(saver, store))
    assert (report.failed_threads, report.deleted_threads, saver.deleted) == (5, 1, ["good"])
    assert len([record for record in caplog.records if "cannot be swept" in record.getMessage()]) == 1
    assert len(await due(store)) == 5, "the next sweep tries again"
    away = Away()
    with pytest.raises(StoreUnavailableError):
        await swept(Persistence(away, store))
    assert away.tried == 3, "it does not try one after the other in vain"
    by_turns = AwayByTurns()
    assert (await swept(Persistence(by_turns, store))).failed_threads == 5, "it was never away three times in a row"


async def test_in_memory_a_thread_whose_state_cannot_be_deleted_keeps_its_runs() -> None:
    class Away(Recorder):
        async def adelete_thread(self, thread_id: str) -> None:
            raise StoreUnavailableError("It is away.")

    store = InMemoryMetadataStore()
    await aged(store, "t")
    await finished(store, "t", thread_status=None)
    before = await everything(store)
    with pytest.raises(StoreUnavailableError):
        await store.sweeps().expire_thread("t", Away())
    assert await everything(store) == before
    assert await due(store) == ["t"]


@pytest.mark.parametrize("strategy", ["delete", "keep_latest"])
async def test_in_memory_a_run_waits_while_the_state_of_its_thread_is_deleted(strategy: str) -> None:
    store, begun, order = InMemoryMetadataStore(), asyncio.Event(), list[str]()

    class Slow(Recorder):
        async def adelete_thread(self, thread_id: str) -> None:
            begun.set()
            await asyncio.sleep(0.05)
            order.append("state")

        async def aprune(self, thread_ids: Any, *, strategy: str = "keep_latest") -> None:
            await self.adelete_thread(thread_ids[0])

    async def start() -> None:
        await begun.wait()
        assert await store.sweeps().expire_thread("t", Slow()) == "kept", "another sweep is at it"
        run_id = new_id()
        await store.start_run(run_id, worker_id=WORKER)
        await asyncio.gather(started(store, "t"), store.claim_thread(run_id, "t", owner=None))
        order.append("runs")

    await aged(store, "t", strategy)
    expiry, _ = await asyncio.gather(store.sweeps().expire_thread("t", Slow()), start())
    assert expiry == ("deleted" if strategy == "delete" else "pruned")
    assert order == ["state", "runs"]
    assert (await the_thread(store, "t"))["status"] == "busy"


async def test_whoever_closes_it_waits_for_the_step_that_is_under_way_even_if_cancelled() -> None:
    begun, done = asyncio.Event(), list[str]()

    class Slow(Recorder):
        async def adelete_thread(self, thread_id: str) -> None:
            begun.set()
            await asyncio.sleep(0.2)
            done.append(thread_id)

    store = InMemoryMetadataStore()
    await aged(store, "t")

    async def sweep() -> None:
        async with Sweeper(Persistence(Slow(), store), "w", interval=0.01, run_retention=None):
            await begun.wait()
        done.append("closed")

    sweeping = asyncio.create_task(sweep())
    await begun.wait()
    await asyncio.sleep(0.05)
    sweeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sweeping
    assert done == ["t"]
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "skeino sweeper"]


async def test_old_runs_go_in_batches_and_the_threads_stay(
    persistence: Persistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skeino.persistence.sweeping.RUNS_AT_ONCE", 3)
    now = datetime.now(UTC)
    long_ago = now - timedelta(days=10)
    store = persistence.metadata_store
    for _ in range(7):
        await finished(store, "t", start={"created_at": long_ago}, finished_at=long_ago)
    kept = {await finished(store, "t", finished_at=now), await started(store, "t", created_at=long_ago)}
    told: list[int] = []
    report = await swept(persistence, retention=timedelta(days=9), on_progress=lambda done: told.append(done[2]))
    assert (report.deleted_runs, told) == (7, [3, 6, 7])
    threads, runs = await everything(store)
    assert {row["run_id"] for row in runs} == kept
    assert len(threads) == 1


@pytest.mark.mongodb
async def test_on_a_mongodb_server_that_stands_alone_both_halves_go(
    standalone_mongodb_server: LocalMongoServer,
) -> None:
    settings = SkeinoSettings(
        checkpointer_scheme="mongodb", checkpointer_uri=standalone_mongodb_server.create_database()
    )
    async with open_persistence(settings) as persistence:
        await with_state(persistence, "gone")
        await with_state(persistence, "pruned", "keep_latest")
        await with_state(persistence, "busy")
        run_id = await started(persistence.metadata_store, "busy")
        report = await swept(persistence)
        assert (report.deleted_threads, report.pruned_threads, report.kept_threads) == (1, 1, 1)
        lengths = [len(await checkpoints(persistence, one)) for one in ("gone", "pruned", "busy")]
        assert lengths == [0, 1, 6]
        assert (await the_run(persistence.metadata_store, run_id))["status"] == "running"


@pytest.mark.mongodb
async def test_on_a_mongodb_server_that_stands_alone_a_run_that_starts_meanwhile_keeps_its_thread(
    standalone_mongodb_server: LocalMongoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SkeinoSettings(
        checkpointer_scheme="mongodb", checkpointer_uri=standalone_mongodb_server.create_database()
    )
    prune, loop, runs = mongodb_history.prune_within, asyncio.get_running_loop(), list[str]()
    async with open_persistence(settings) as persistence:
        store = persistence.metadata_store

        def interrupted(*arguments: Any) -> None:
            prune(*arguments)
            runs.append(asyncio.run_coroutine_threadsafe(started(store, "t"), loop).result())

        monkeypatch.setattr(mongodb_history, "prune_within", interrupted)
        for strategy in ("delete", "keep_latest"):
            await with_state(persistence, "t", strategy)
            assert await sweeps_of(store).expire_thread("t", persistence.checkpointer) == "kept"
            assert (await the_thread(store, "t"))["status"] == "busy"
            assert (await the_run(store, runs[-1]))["thread_id"] == "t"
            await store.delete_thread("t", force=True)


class Slow(TypedDict, total=False):
    messages: Annotated[list[str], operator.add]


@pytest.mark.parametrize("settings", ALL, indirect=True)
async def test_what_outlives_its_run_and_the_thread_as_well_does_not_bring_the_state_back(
    settings: SkeinoSettings,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(state: Slow) -> Slow:
        begun.set()
        await go_on.wait()
        return {"messages": ["late"]}

    builder = StateGraph(Slow)
    builder.add_node("slow", slow)
    builder.add_edge(START, "slow")
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        persistence = tracker.persistence
        graph: Any = builder.compile(checkpointer=persistence.checkpointer)
        await persistence.metadata_store.create_thread("t", ttl={"strategy": "delete", "ttl": 0.1 / 60})
        async with tracker.run(thread_id="t") as run:
            task = asyncio.create_task(graph.ainvoke({"messages": ["early"]}, run.config))
            await begun.wait()
        await asyncio.sleep(0.2)
        assert (await swept(persistence)).deleted_threads == 1
        go_on.set()
        with pytest.raises(RunInterruptedError):
            await task
        assert await checkpoints(persistence, "t") == []


# ── The default ttl ──────────────────────────────────────────────────────────────────────────────────────


async def test_new_threads_get_the_settings_ttl_however_they_are_made_unless_they_are_given_one(
    settings: SkeinoSettings,
) -> None:
    hour: ThreadTTL = {"strategy": "delete", "ttl": 60.0}
    async with open_persistence(settings) as persistence:
        await persistence.metadata_store.create_thread("before")
    changes = {"thread_ttl_minutes": 0.5, "thread_ttl_strategy": "keep_latest"}
    async with open_persistence(settings.model_copy(update=changes)) as persistence:
        store = persistence.metadata_store
        if isinstance(store, InMemoryMetadataStore):
            await store.create_thread("before", ttl=None)
        await store.create_thread("made")
        await store.create_thread("given", ttl=hour)
        await store.create_thread("for ever", ttl=None)
        await started(store, "before")
        await started(store, "by a run")
        await store.attach_thread(await started(store), "by a saver", owner=None)
        assert isinstance(store, ClaimingStore)
        await store.claim_thread(await started(store), "by a claim", owner=None)
        runs = [await started(store) for _ in range(20)]
        await asyncio.gather(  # together with others
            *(started(store, f"with others {number}") for number in range(10)),
            *(store.attach_thread(run_id, f"attached {run_id}", owner=None) for run_id in runs[:10]),
            *(store.claim_thread(run_id, f"claimed {run_id}", owner=None) for run_id in runs[10:]),
        )
        ttls = {row["thread_id"]: row["ttl"] for row in await store.search_threads()}
        assert (ttls.pop("before"), ttls.pop("given"), ttls.pop("for ever")) == (None, hour, None)
        assert len(ttls) == 34
        assert all(ttl == HALF for ttl in ttls.values())
        (await the_thread(store, "made"))["ttl"] = None
        assert (await the_thread(store, "made"))["ttl"] == HALF


# ── In a process that tracks runs ────────────────────────────────────────────────────────────────────────


async def until(condition: Any, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, "it never came"
        await asyncio.sleep(0.02)


async def test_processes_that_are_told_to_sweep_in_turn_and_say_what_they_did(
    settings: SkeinoSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "skeino")
    often = settings.model_copy(update={"sweep_interval_minutes": 0.3 / 60, "run_retention_days": 1.0})
    async with RunTracker(often).lifespan() as one, RunTracker(often).lifespan():
        persistence: Persistence = one["persistence"]
        store = persistence.metadata_store
        await with_state(persistence, "gone")
        await with_state(persistence, "kept", None)
        long_ago = datetime.now(UTC) - timedelta(days=2)
        old = await finished(store, "kept", start={"created_at": long_ago}, finished_at=long_ago)

        async def over() -> bool:
            return await store.get_thread("gone") is None and await store.get_run(old) is None

        await until(over)
        assert await checkpoints(persistence, "gone") == []
        assert len(await checkpoints(persistence, "kept")) == 6
    said_so = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Swept:")]
    assert sum("1 threads deleted" in one for one in said_so) == 1
    assert sum("1 finished runs deleted" in one for one in said_so) == 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("more", [{}, {"thread_ttl_minutes": 1.0, "sweep_interval_minutes": 0.0}])
async def test_nobody_sweeps_who_was_not_asked(more: dict[str, Any], tmp_path: Path) -> None:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"), **more)
    async with RunTracker(settings).lifespan():
        assert not [task for task in asyncio.all_tasks() if "sweeper" in task.get_name()]
    asked = settings.model_copy(update={"sweep_interval_minutes": 5.0})
    async with RunTracker(asked).lifespan():
        assert [task for task in asyncio.all_tasks() if "sweeper" in task.get_name()]
    assert not [task for task in asyncio.all_tasks() if "sweeper" in task.get_name()]


async def test_a_database_that_goes_away_is_told_once_and_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "skeino")
    file = tmp_path / "skeino.db"
    settings = SkeinoSettings(
        checkpointer_scheme="sqlite",
        checkpointer_uri=str(file),
        checkpointer_options={"busy_timeout": 0.1},
        sweep_interval_minutes=0.1 / 60,
        lease_seconds=0,
    )

    def messages(word: str) -> list[str]:
        return [one.getMessage() for one in caplog.records if word in one.getMessage()]

    async with RunTracker(settings).lifespan() as state:
        store: MetadataStoreProtocol = state["metadata_store"]
        await aged(store, "t")
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            async def failing() -> bool:
                return bool(messages("Sweeping fails"))

            await until(failing)
            await asyncio.sleep(0.5)
            other.execute("ROLLBACK")

        async def gone() -> bool:
            return await store.get_thread("t") is None and bool(messages("Sweeping works again"))

        await until(gone)
    assert len(messages("Sweeping fails")) == 1


async def test_closing_does_not_wait_for_a_sweep_that_takes_long(persistence: Persistence) -> None:
    for number in range(5):
        await aged(persistence.metadata_store, f"t{number}")
    done: list[int] = []
    report = await swept(persistence, on_progress=lambda so_far: done.append(1), must_stop=lambda: len(done) == 2)
    assert (report.deleted_threads, report.broken_off) == (2, True)
    assert len(await due(persistence.metadata_store)) == 3
    assert (await swept(persistence)).deleted_threads == 3, "its turn was given back"


async def test_a_sweep_that_another_has_taken_over_stops(
    persistence: Persistence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skeino.persistence.sweeping.SWEEP_SECONDS", 0.0)  # it looks after each thread
    sweeps = sweeps_of(persistence.metadata_store)
    for number in range(3):
        await aged(persistence.metadata_store, f"t{number}")
    assert await sweeps.begin("slow", seconds=0.0, interval=0.0) == 0.0
    await asyncio.sleep(0.01)
    assert await sweeps.begin("another", seconds=60, interval=0.0) == 0.0
    report = await Sweep(sweeps, persistence.checkpointer, "slow", None).run()
    assert (report.broken_off, report.deleted_threads) == (True, 0)
    assert await sweeps.begin("third", seconds=60, interval=0.0) > 50, "it has not ended the other's"


# ── A process that dies in the middle ────────────────────────────────────────────────────────────────────

SWEEPING = """
import asyncio, sys
from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from skeino.persistence.sweeping import Sweep

async def main():
    async with open_persistence(SkeinoSettings(checkpointer_scheme=sys.argv[1], checkpointer_uri=sys.argv[2])) as one:
        sweeps = one.metadata_store.sweeps()
        await sweeps.begin("dies", seconds=0.1, interval=0.0)
        await Sweep(sweeps, one.checkpointer, "dies", None, on_progress=lambda _: print("done", flush=True)).run()

asyncio.run(main())
"""


@pytest.fixture(params=DURABLE)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[SkeinoSettings, Persistence]]:
    settings = settings_of(request, tmp_path)
    async with open_persistence(settings) as persistence:
        yield settings, persistence


@pytest.mark.slow
async def test_who_dies_while_sweeping_leaves_both_halves_or_neither_and_the_next_goes_on(
    opened: tuple[SkeinoSettings, Persistence],
) -> None:
    settings, persistence = opened
    number = 60
    for one in range(number):
        await with_state(persistence, f"t{one}", "delete" if one % 2 else "keep_latest")
    killed_at: list[int] = []
    for _ in range(3):
        where = [settings.checkpointer_scheme, str(settings.checkpointer_uri)]
        command = [sys.executable, "-W", "ignore", "-c", SWEEPING, *where]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2], env=os.environ
        )
        assert process.stdout is not None
        for _ in range(random.randint(3, 8)):
            assert await process.stdout.readline()
        await asyncio.sleep(random.uniform(0.0, 0.01))
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.sleep(1.1)
        async with keeping(persistence.metadata_store) as keeper:  # as every process does: MongoDB's transactions end
            await keeper.lose(f"the {len(killed_at)}th")
        left = await due(persistence.metadata_store)
        killed_at.append(number - len(left))
        there = {row["thread_id"] for row in await persistence.metadata_store.search_threads(limit=1000)}
        lengths = {f"t{one}": len(await checkpoints(persistence, f"t{one}")) for one in range(number)}
        assert {length for thread_id, length in lengths.items() if thread_id in left} == {6}
        assert {length for thread_id, length in lengths.items() if thread_id not in there} == {0}
        assert {length for thread_id, length in lengths.items() if thread_id in there - {*left}} == {1}
    assert killed_at[0] > 0
    assert killed_at == sorted(killed_at)
    assert killed_at[-1] < number, "it was killed too late to be of use"
    report = await swept(persistence)
    assert report.deleted_threads + report.pruned_threads == number - killed_at[-1]


# ── What is looked at ────────────────────────────────────────────────────────────────────────────────────

MANY = 5000


INSERT = """
    INSERT INTO app_threads (
        thread_id, status, metadata, config, ttl_strategy, ttl_minutes, created_at, updated_at
    )
    SELECT %(name)s || n, 'idle', '{}', '{}', %(strategy)s, %(minutes)s, now(), now() - interval '1 hour'
    FROM generate_series(1, %(number)s) AS n
"""


@pytest.mark.parametrize("settings", [POSTGRES], indirect=True)
async def test_on_postgresql_the_due_are_found_by_the_index(settings: SkeinoSettings, persistence: Persistence) -> None:
    await aged(persistence.metadata_store, "due")
    with psycopg.connect(str(settings.checkpointer_uri)) as connection:

        def plan(statement: str, **values: Any) -> str:
            rows = connection.execute(f"EXPLAIN (ANALYZE) {statement}".encode(), values)
            return "\n".join(line for (line,) in rows)

        connection.execute(INSERT, {"name": "many", "strategy": None, "minutes": None, "number": MANY})
        connection.execute(INSERT, {"name": "young", "strategy": "delete", "minutes": 100.0, "number": MANY})
        connection.execute("ANALYZE app_threads")
        threads = plan(postgres_sweeps.DUE_THREADS, strategies=["delete"], leave_out=["x"], limit=100)
        connection.execute("SET enable_seqscan = off")  # which few rows may be read by
        runs = plan(postgres_sweeps.DELETE_RUNS, older_than=timedelta(days=1), limit=5)
    assert "Index Scan using app_threads_expiring" in threads
    assert "Rows Removed" not in threads
    assert "app_runs_created" in runs


@pytest.mark.parametrize("settings", [SQLITE], indirect=True)
async def test_on_sqlite_the_due_are_found_by_the_index(settings: SkeinoSettings, persistence: Persistence) -> None:
    await aged(persistence.metadata_store, "due")
    with closing(sqlite3.connect(str(settings.checkpointer_uri))) as connection:
        values = {"now": "2026-01-01", "strategies": "[]", "leave_out": "[]", "limit": 5, "before": "2026-01-01"}
        plans = [
            " ".join(row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values))
            for statement in (sqlite_sweeps.DUE_THREADS, sqlite_sweeps.COUNT, sqlite_sweeps.DELETE_RUNS)
        ]
    assert all("USING INDEX app_threads_expiring (<expr><?)" in plan for plan in plans[:2]), plans
    assert "app_runs_created (created_at<?)" in plans[2]


@pytest.mark.parametrize("settings", [MONGODB], indirect=True)
async def test_on_mongodb_the_due_are_found_by_the_index(settings: SkeinoSettings, persistence: Persistence) -> None:
    await aged(persistence.metadata_store, "due")
    with MongoClient[Any](settings.checkpointer_uri) as client:
        database = client.get_default_database()
        document: dict[str, Any] = database["app_threads"].find_one({"_id": "due"}) or {}
        young = {**document, "updated_at": microseconds(datetime.now(UTC))}
        database["app_threads"].insert_many({**young, "_id": f"young{number}"} for number in range(MANY))
        database["app_threads"].insert_many({**young, "_id": f"many{number}", "ttl": None} for number in range(MANY))
        database.command("profile", 2)
        try:
            assert await due(persistence.metadata_store, strategies=("delete",)) == ["due"]
        finally:
            database.command("profile", 0)
        seen = list(database["system.profile"].find({"ns": f"{database.name}.app_threads"}))
        database["system.profile"].drop()
    assert seen
    assert sum(one["docsExamined"] for one in seen) < 10
    assert all("COLLSCAN" not in one["planSummary"] for one in seen)
