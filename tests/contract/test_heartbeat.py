"""The heartbeat: who may declare others dead, and what becomes of a process that was declared dead itself."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from skeino import SchemaError, SkeinoSettings, StoreUnavailableError
from skeino.persistence import MetadataStoreProtocol, open_persistence
from skeino.persistence.heartbeat import BEAT, GAP, LAST_RETRY, LIMIT, Heartbeat, Steadiness
from skeino.persistence.leases import END_UNKNOWN, PATIENCE, WORKER_LOST, LeasingStore
from skeino.persistence.rows import RunRow
from skeino.runs import new_id
from skeino.testing import ending, started, the_run
from skeino_asgi import RunTracker
from skeino_asgi.opening import new_worker_id

SECONDS = 1.0  # shorter than SkeinoSettings allows: here nothing else is busy


class Clocks:
    """This machine's clock, and the database's."""

    def __init__(self) -> None:
        self.here = 100.0
        self.there = datetime(2026, 3, 1, tzinfo=UTC)
        self.steadiness = Steadiness(30, lambda: self.here)

    def go_on(self, seconds: float, *, there: float | None = None) -> None:
        self.here += seconds
        self.there += timedelta(seconds=seconds if there is None else there)

    def renewed(self) -> None:
        self.steadiness.renewed(self.there + timedelta(seconds=30))

    def steady_for(self, seconds: int) -> None:
        """Renew every ten seconds, for so long."""
        self.renewed()
        for _ in range(seconds // 10):
            self.go_on(10)
            self.renewed()


def test_a_process_is_steady_for_as_long_as_it_renews_without_a_gap() -> None:
    clocks = Clocks()
    assert clocks.steadiness.seconds() == 0
    clocks.steady_for(100)
    assert clocks.steadiness.seconds() == 100


def test_a_failure_ends_it() -> None:
    clocks = Clocks()
    clocks.steady_for(100)
    clocks.steadiness.failed()
    assert clocks.steadiness.seconds() == 0
    clocks.go_on(1)
    clocks.steady_for(50)
    assert clocks.steadiness.seconds() == 50


def test_a_process_that_stood_still_begins_anew() -> None:
    clocks = Clocks()
    clocks.steady_for(100)
    clocks.go_on(14)
    clocks.renewed()
    assert clocks.steadiness.seconds() == 0


@pytest.mark.parametrize("jump", [-3600, -20, 40, 3600])
def test_a_database_whose_clock_jumps_lets_nobody_be_counted_as_dead(jump: int) -> None:
    clocks = Clocks()
    clocks.steady_for(100)
    clocks.go_on(10, there=10 + jump)
    clocks.renewed()
    assert clocks.steadiness.seconds() == 0
    clocks.go_on(10)
    clocks.renewed()
    assert clocks.steadiness.seconds() == 10


def test_whoever_lives_has_renewed_its_lease_before_anybody_steady_looks() -> None:
    assert 1 + LIMIT + LAST_RETRY + LIMIT < PATIENCE, "an attempt that hangs, the longest pause, and another attempt"
    assert BEAT + GAP + LIMIT + LAST_RETRY < 1, "an outage between two renewals of another's, which noticed nothing"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[MetadataStoreProtocol]:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    async with open_persistence(settings) as persistence:
        yield persistence.metadata_store


@pytest.fixture
def file(store: MetadataStoreProtocol, tmp_path: Path) -> sqlite3.Connection:
    """The store's file, past the store."""
    return sqlite3.connect(tmp_path / "skeino.db", isolation_level=None, timeout=5)


def heartbeat_of(store: MetadataStoreProtocol, known: Callable[[], Any] = set) -> Heartbeat:
    assert isinstance(store, LeasingStore)
    return Heartbeat(store, SECONDS, new_worker_id, known)


async def until(condition: Callable[[], Awaitable[Any]], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def ended(store: MetadataStoreProtocol, run_id: str) -> RunRow:
    async def has_ended() -> bool:
        return (await the_run(store, run_id))["status"] != "running"

    await until(has_ended)
    return await the_run(store, run_id)


async def test_the_runs_of_a_process_that_died_end_and_those_of_the_living_go_on(store: MetadataStoreProtocol) -> None:
    assert isinstance(store, LeasingStore)
    dead = store.open_leases(1)
    dead.acquire("dead", 0.5)
    dead.close()
    died, script = await started(store, "t", worker_id="dead"), await started(store, "s", worker_id="a script")
    living = [new_id(), new_id()]
    async with heartbeat_of(store, lambda: living) as one, heartbeat_of(store, lambda: living) as two:
        for run_id, heartbeat in zip(living, (one, two), strict=True):
            await started(store, "u", run_id=run_id, worker_id=heartbeat.worker_id)
        begin = time.monotonic()
        assert (await ended(store, died))["error"] == WORKER_LOST
        assert time.monotonic() - begin > PATIENCE * 0.5 - 0.2, "it was not steady for so long"
        await asyncio.sleep(2 * SECONDS)
        assert [(await the_run(store, run_id))["status"] for run_id in (*living, script)] == ["running"] * 3


async def test_a_process_that_was_counted_as_dead_goes_on_as_another_worker(
    store: MetadataStoreProtocol, file: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    now = new_id()
    async with heartbeat_of(store, lambda: {now}) as heartbeat:
        lost = heartbeat.worker_id
        run_id = await started(store, "t", worker_id=lost)
        file.execute("UPDATE app_workers SET lost_at = expires_at")

        async def has_another() -> bool:
            return heartbeat.worker_id != lost

        await until(has_another)
        assert (await ended(store, run_id))["error"] == WORKER_LOST
        assert not await store.finish_run(ending(run_id, worker_id=lost))
        await started(store, "t", run_id=now, worker_id=heartbeat.worker_id)
        await asyncio.sleep(2 * SECONDS)
        assert (await the_run(store, now))["status"] == "running"
    file.close()
    said = [record for record in caplog.records if "counted as dead" in record.getMessage()]
    assert len(said) == 1
    assert lost in said[0].getMessage()


async def test_a_run_that_its_process_does_not_know_ends_as_an_error(store: MetadataStoreProtocol) -> None:
    known: set[str] = set()
    async with heartbeat_of(store, lambda: known) as heartbeat:
        forgotten, there = new_id(), new_id()
        known.add(there)
        for run_id in (forgotten, there):
            await started(store, "t", run_id=run_id, worker_id=heartbeat.worker_id)
        assert (await ended(store, forgotten))["error"] == END_UNKNOWN
        await asyncio.sleep(2 * SECONDS)
        assert (await the_run(store, there))["status"] == "running"


async def test_a_run_on_its_way_from_one_hand_to_the_other_is_left_alone(store: MetadataStoreProtocol) -> None:
    seen = 0
    run_id = new_id()

    def now_and_then() -> set[str]:
        nonlocal seen
        seen += 1
        return {run_id} if seen % 4 < 2 else set()  # asked twice at each heartbeat

    async with heartbeat_of(store, now_and_then) as heartbeat:
        await started(store, "t", run_id=run_id, worker_id=heartbeat.worker_id)
        await asyncio.sleep(4 * SECONDS)
        assert seen > 12
        assert (await the_run(store, run_id))["status"] == "running"


async def test_the_lease_of_a_closed_event_loop_is_given_up(
    store: MetadataStoreProtocol, file: sqlite3.Connection
) -> None:
    is_closed = False
    async with heartbeat_of(store, lambda: None if is_closed else set()) as heartbeat:
        run_id = await started(store, "t", worker_id=heartbeat.worker_id)
        is_closed = True

        async def has_run_out() -> bool:
            (row,) = file.execute("SELECT expires_at FROM app_workers").fetchall()
            return bool(datetime.fromisoformat(row[0]) < datetime.now(UTC))

        await until(has_run_out)
        async with heartbeat_of(store):
            assert (await ended(store, run_id))["error"] == WORKER_LOST
    file.close()


async def test_a_heartbeat_that_fails_is_reported_once_and_so_is_its_return(
    store: MetadataStoreProtocol, file: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "skeino")
    async with heartbeat_of(store) as heartbeat:
        worker_id = heartbeat.worker_id
        file.execute("BEGIN EXCLUSIVE")
        await asyncio.sleep(2.5 * SECONDS)
        file.execute("ROLLBACK")

        async def is_back() -> bool:
            return any("well again" in record.getMessage() for record in caplog.records)

        await until(is_back)
        assert heartbeat.worker_id == worker_id, "nobody has declared it lost"
    file.close()
    lines = [record.getMessage() for record in caplog.records if "The heartbeat" in record.getMessage()]
    assert len(lines) == 2
    assert " fails: The SQLite file" in lines[0]


async def test_a_lease_that_cannot_be_had_stops_the_opening(
    store: MetadataStoreProtocol, file: sqlite3.Connection
) -> None:
    file.execute("DROP TABLE app_workers")
    file.close()
    with pytest.raises(SchemaError):
        async with heartbeat_of(store):
            raise AssertionError


async def test_an_opening_that_is_given_up_leaves_no_thread(
    store: MetadataStoreProtocol, file: sqlite3.Connection
) -> None:
    file.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2), heartbeat_of(store):
            raise AssertionError
    file.execute("ROLLBACK")
    file.close()

    async def has_ended() -> bool:
        return not any(thread.name == "skeino-heartbeat" for thread in threading.enumerate())

    await until(has_ended)


async def test_a_clean_end_gives_the_lease_back_and_ends_the_thread(
    store: MetadataStoreProtocol, file: sqlite3.Connection
) -> None:
    async with heartbeat_of(store):
        assert file.execute("SELECT count(*) FROM app_workers").fetchone() == (1,)
    assert file.execute("SELECT count(*) FROM app_workers").fetchone() == (0,)
    file.close()
    assert [thread.name for thread in threading.enumerate() if thread.name == "skeino-heartbeat"] == []


def settings_of(folder: Path, seconds: float) -> SkeinoSettings:
    return SkeinoSettings(
        checkpointer_scheme="sqlite", checkpointer_uri=str(folder / "skeino.db"), lease_seconds=seconds
    )


async def test_a_tracker_s_runs_name_the_worker_that_holds_its_lease(tmp_path: Path) -> None:
    tracker = RunTracker(settings_of(tmp_path, 2))
    async with tracker.lifespan():
        file = sqlite3.connect(tmp_path / "skeino.db", isolation_level=None)
        async with tracker.run(thread_id="t") as run:
            row = await the_run(tracker.metadata_store, run.run_id)
            assert file.execute("SELECT worker_id FROM app_workers").fetchall() == [(row["worker_id"],)]
            assert f"-{os.getpid()}-" in row["worker_id"]
            await asyncio.sleep(2.5)
        assert (await the_run(tracker.metadata_store, run.run_id))["status"] == "success"
    assert file.execute("SELECT count(*) FROM app_workers").fetchone() == (0,)
    file.close()


async def test_a_run_that_began_under_a_lost_lease_is_ended_by_its_tracker_in_vain_but_not_forgotten(
    tmp_path: Path,
) -> None:
    tracker = RunTracker(settings_of(tmp_path, 2))
    async with tracker.lifespan():
        file = sqlite3.connect(tmp_path / "skeino.db", isolation_level=None)
        async with tracker.run(thread_id="t") as run:
            file.execute("UPDATE app_workers SET lost_at = expires_at")
            row = await ended(tracker.metadata_store, run.run_id)
            assert row["error"] == WORKER_LOST
            async with tracker.run(thread_id="t") as another:
                pass
        row, other = [await the_run(tracker.metadata_store, one.run_id) for one in (run, another)]
        assert (row["status"], row["error"], other["status"]) == ("error", WORKER_LOST, "success")
        assert row["worker_id"] != other["worker_id"]
        assert row["late_outcome"] is not None
        assert row["late_outcome"]["status"] == "success"
    file.close()


async def test_without_leases_no_thread_is_started_and_no_row_is_written(tmp_path: Path) -> None:
    tracker = RunTracker(settings_of(tmp_path, 0))
    async with tracker.lifespan(), tracker.run():
        assert [thread.name for thread in threading.enumerate() if thread.name == "skeino-heartbeat"] == []
        file = sqlite3.connect(tmp_path / "skeino.db")
        assert file.execute("SELECT count(*) FROM app_workers").fetchone() == (0,)
        file.close()


async def test_no_run_starts_under_a_lease_that_may_have_been_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = RunTracker(settings_of(tmp_path, 0))
    async with tracker.lifespan():
        opening = tracker.openings.here()
        async with heartbeat_of(tracker.metadata_store) as heartbeat:
            monkeypatch.setattr(opening, "_heartbeat", heartbeat)
            async with tracker.run():
                pass
            monkeypatch.setattr(heartbeat, "_renewed_at", heartbeat._renewed_at - 3000)
            with pytest.raises(StoreUnavailableError, match="lease"):
                async with tracker.run():
                    raise AssertionError
        assert len(await tracker.metadata_store.search_runs()) == 1
