"""Leases, on every backend that outlives its processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pymongo import MongoClient

from skeino import SkeinoSettings, StoreUnavailableError
from skeino.persistence import MetadataStoreProtocol, open_persistence
from skeino.persistence.leases import LeasingStore
from skeino.testing import WORKER, LeaseContract, started, the_run
from skeino.testing.leases import LONG, STEADY, keeping
from tests.contract.backends import CLIENT, DURABLE, MONGODB, MOTOR, POSTGRES, client_settings, settings_of
from tests.contract.backends import empty_mongodb as empty


@pytest.fixture(params=[*DURABLE, MOTOR, CLIENT])
async def settings(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SkeinoSettings]:
    """As everywhere, but for the scheme `memory`, whose rows die with the process."""
    if request.param not in ("mongodb-motor", "mongodb-client"):
        yield settings_of(request, tmp_path)
        return
    uri: str = request.getfixturevalue("module_mongodb")
    empty(uri)
    async with client_settings(uri, motor=request.param == "mongodb-motor") as of_client:
        yield of_client


@pytest.fixture
async def store(settings: SkeinoSettings) -> AsyncIterator[MetadataStoreProtocol]:
    async with open_persistence(settings) as persistence:
        yield persistence.metadata_store


class TestLeases(LeaseContract):
    """See `skeino.testing`."""


@contextmanager
def held(settings: SkeinoSettings, table: str, column: str, value: str) -> Iterator[None]:
    """Another session's transaction that holds one row."""
    assert settings.checkpointer_uri is not None
    if settings.checkpointer_scheme == "postgres":
        with psycopg.connect(settings.checkpointer_uri) as other:
            other.execute(f"SELECT FROM {table} WHERE {column} = %s FOR UPDATE", (value,))
            yield
    else:
        with MongoClient[Any](settings.checkpointer_uri) as client, client.start_session() as session:
            with session.start_transaction():
                changes = {"$set": {"held": 1}}
                client.get_default_database()[table].update_one({"_id": value}, changes, session=session)
                yield
                session.abort_transaction()


@pytest.mark.parametrize("settings", [POSTGRES, MONGODB], indirect=True)
@pytest.mark.parametrize("held_table", ["app_runs", "app_threads"])
async def test_a_run_or_thread_that_another_holds_keeps_no_other_run_from_its_end(
    settings: SkeinoSettings, store: MetadataStoreProtocol, held_table: str
) -> None:
    runs = [await started(store, f"t{number}") for number in range(4)]
    column, value = ("run_id", runs[1]) if held_table == "app_runs" else ("thread_id", "t1")
    async with keeping(store) as keeper:
        await keeper.lose(WORKER)
        with held(settings, held_table, column, value):
            begin = time.monotonic()
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 3
            assert time.monotonic() - begin < 2
            assert [(await the_run(store, run_id))["status"] for run_id in runs].count("error") == 3
        assert await keeper(keeper.leases.end_runs_of_lost, 100) == 1
    assert {row["status"] for row in await store.search_threads()} == {"error"}


@pytest.mark.parametrize("settings", [POSTGRES, MONGODB], indirect=True)
async def test_a_lease_that_another_holds_is_given_up_in_time(
    settings: SkeinoSettings, store: MetadataStoreProtocol
) -> None:
    assert isinstance(store, LeasingStore)
    leases = store.open_leases(0.5)
    try:
        await asyncio.to_thread(leases.acquire, "w", LONG)
        with held(settings, "app_workers", "_id" if settings.checkpointer_scheme == "mongodb" else "worker_id", "w"):
            begin = time.monotonic()
            with pytest.raises(StoreUnavailableError):
                await asyncio.to_thread(leases.renew, "w", LONG)
            assert time.monotonic() - begin < 2
            assert await asyncio.to_thread(leases.declare_lost, STEADY) == []
        assert await asyncio.to_thread(leases.renew, "w", LONG) is not None
    finally:
        await asyncio.to_thread(leases.close)


async def test_a_file_that_is_written_all_the_time_leaves_gaps_for_a_lease(tmp_path: Path) -> None:
    settings = SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri=str(tmp_path / "skeino.db"))
    async with open_persistence(settings) as persistence, open_persistence(settings) as another:

        async def write(store: MetadataStoreProtocol) -> None:
            while True:
                await asyncio.gather(*(started(store, f"t{number}") for number in range(20)))

        writing = [asyncio.create_task(write(one.metadata_store)) for one in (persistence, another)]
        try:
            async with keeping(persistence.metadata_store) as keeper:
                await keeper(keeper.leases.acquire, "w", 60)
                waits = []
                for _ in range(20):
                    begin = time.monotonic()
                    assert await keeper(keeper.leases.renew, "w", 60)
                    waits.append(time.monotonic() - begin)
        finally:
            for task in writing:
                task.cancel()
            await asyncio.gather(*writing, return_exceptions=True)
    assert max(waits) < 5, waits  # of a lease of 60 s


@pytest.mark.parametrize("settings", [MONGODB], indirect=True)
@pytest.mark.parametrize("when", ["before the lease is lost", "after the lease was lost"])
async def test_a_transaction_that_a_dead_process_has_left_open_holds_nothing_for_long(
    settings: SkeinoSettings, store: MetadataStoreProtocol, when: str
) -> None:
    run_id = await started(store, "t")
    async with keeping(store) as keeper:
        if when == "after the lease was lost":
            await keeper.lose(WORKER)
        with MongoClient[Any](settings.checkpointer_uri, appname="skeino") as client, client.start_session() as dead:
            dead.start_transaction()
            for collection, value in (("app_runs", run_id), ("app_threads", "t")):
                changes = {"$set": {"held": 1}}
                client.get_default_database()[collection].update_one({"_id": value}, changes, session=dead)
            await asyncio.sleep(1.1)
            if when == "before the lease is lost":
                await keeper.lose(WORKER)
                await started(store, "t", worker_id="other")  # it does not wait for the thread
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 1
    assert (await the_run(store, run_id))["status"] == "error"


@pytest.mark.parametrize("settings", [MONGODB], indirect=True)
async def test_an_application_s_own_transaction_is_left_alone(
    settings: SkeinoSettings, store: MetadataStoreProtocol
) -> None:
    with MongoClient[Any](settings.checkpointer_uri, appname="shop") as client, client.start_session() as session:
        orders = client.get_default_database()["orders"]
        session.start_transaction()
        orders.insert_one({"_id": 1}, session=session)
        await asyncio.sleep(1.1)
        async with keeping(store) as keeper:
            await keeper.lose(WORKER)
        session.commit_transaction()
        assert orders.count_documents({}) == 1
