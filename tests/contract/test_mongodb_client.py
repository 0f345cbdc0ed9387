"""A MongoDB client that the application has already: Motor's, or PyMongo's asynchronous one."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from bson import SON
from bson.raw_bson import RawBSONDocument
from langgraph.checkpoint.base import empty_checkpoint
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, MongoClient
from pymongo.server_api import ServerApi

from skeino import ConfigurationError, SkeinoSettings, StoreUnavailableError
from skeino.persistence import Persistence, open_persistence
from skeino.testing import WORKER, finished, started, the_run
from skeino_asgi import RunTracker
from tests.contract.backends import client_settings
from tests.savers.conformance_table import CAPABILITIES, cell, documented, ours, report_on
from tests.savers.graphs import checkpoints, config_of, plain, said, stamps
from tests.servers.mongodb import LocalMongoServer, MongoServer, with_database

KINDS = pytest.mark.parametrize("motor", [True, False], ids=["Motor", "PyMongo"])


@asynccontextmanager
async def opened(uri: str, *, motor: bool, **options: Any) -> AsyncIterator[Persistence]:
    async with client_settings(uri, motor=motor, **options) as settings, open_persistence(settings) as persistence:
        yield persistence


async def refused(**fields: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with open_persistence(SkeinoSettings(checkpointer_scheme="mongodb", **fields)):
            raise AssertionError
    return str(caught.value)


@KINDS
async def test_langgraph_s_suite_passes_over_it(mongodb_uri: str, motor: bool) -> None:
    async with client_settings(mongodb_uri, motor=motor) as settings:
        report = await report_on("mongodb", ours(settings))
    assert {name: cell(report, name) for name in CAPABILITIES} == documented("mongodb")


@KINDS
async def test_a_tracked_graph_is_stamped_and_stays_after_the_client_was_used_elsewhere(
    mongodb_uri: str, motor: bool
) -> None:
    async with client_settings(mongodb_uri, motor=motor) as settings:
        for turn in (1, 2):  # the second opening has the same client, which the first has not closed
            tracker = RunTracker(settings)
            async with tracker.lifespan():
                async with tracker.run(thread_id="t") as run:
                    result = await plain(tracker.checkpointer).ainvoke(said("hello"), run.config)
                assert len(result["messages"]) == 2 * turn
                found = [one async for one in tracker.checkpointer.alist(config_of("t"))]
                assert stamps(found[:3]) == [run.run_id] * 3
                row = await the_run(tracker.metadata_store, run.run_id)
                assert (row["status"], row["checkpoint_count"]) == ("success", 3)


@KINDS
async def test_both_halves_are_in_its_default_database(mongodb_uri: str, motor: bool) -> None:
    async with opened(mongodb_uri, motor=motor) as persistence:
        await finished(persistence.metadata_store, "t")
        await persistence.checkpointer.aput(config_of("t", checkpoint_ns=""), empty_checkpoint(), {}, {})
    with MongoClient[Any](mongodb_uri) as client:
        names = client.get_default_database().list_collection_names()
    assert {"app_threads", "app_runs", "checkpoints"} <= {*names}


async def test_a_client_without_a_database_has_those_of_the_scheme(private_mongodb_server: LocalMongoServer) -> None:
    async with opened(private_mongodb_server.dsn, motor=True) as persistence:
        await finished(persistence.metadata_store, "t")
    with private_mongodb_server.client() as client:
        assert "app_runs" in client["skeino"].list_collection_names()
        assert "checkpoints" in client["checkpointing_db"].list_collection_names()


async def test_the_client_s_own_habits_change_nothing(mongodb_uri: str) -> None:
    client: Any = AsyncIOMotorClient(
        mongodb_uri,
        document_class=SON,
        tz_aware=True,
        uuidRepresentation="standard",
        readPreference="secondaryPreferred",
    )
    settings = SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_options={"client": client})
    async with open_persistence(settings) as persistence:
        run_id = await finished(persistence.metadata_store, "t", metadata={"a": {"b": 1}})
        row = await the_run(persistence.metadata_store, run_id)
        assert type(row["metadata"]["a"]) is dict
        await plain(persistence.checkpointer).ainvoke(said("hello"), config_of("t"))
        assert persistence.checkpointer.db.write_concern.document == {"w": "majority", "j": True}  # type: ignore[attr-defined]
    await asyncio.to_thread(client.close)


@KINDS
@pytest.mark.parametrize(
    "habits",
    [
        {"readPreference": "secondaryPreferred"},
        {"readPreference": "secondary"},
        {"readConcernLevel": "linearizable"},
        {"readConcernLevel": "available"},
        {"readConcernLevel": "snapshot"},
        {"document_class": RawBSONDocument},
        {"server_api": ServerApi("1", strict=True)},
        {"maxPoolSize": 1},
        {"maxPoolSize": None},
        {"retryWrites": False},
    ],
    ids=lambda habits: "-".join(habits),
)
async def test_all_that_is_done_in_one_transaction_is_done_over_any_client(
    mongodb_uri: str, motor: bool, habits: dict[str, Any]
) -> None:
    """MongoDB refuses a transaction that reads from a secondary, or as its client does outside of one."""
    async with client_settings(mongodb_uri, motor=motor, habits=habits) as settings:
        tracker = RunTracker(settings)
        async with tracker.lifespan():
            store, saver = tracker.metadata_store, tracker.checkpointer
            async with tracker.run(thread_id="t") as run:
                await plain(saver).ainvoke(said("hello"), run.config)
            await saver.acopy_thread("t", "copy")
            await saver.aprune(["t"])
            assert (len(await checkpoints(saver, "t")), len(await checkpoints(saver, "copy"))) == (1, 3)
            await saver.adelete_for_runs([run.run_id])
            assert await checkpoints(saver, "t") == await checkpoints(saver, "copy") == []
            left = await started(store, "left")
            assert await store.interrupt_runs(WORKER, {"code": "x", "type": None, "message": "x"}) == 1
            assert (await the_run(store, left))["status"] == "interrupted"
            await store.delete_thread("t")
            assert [row["thread_id"] for row in await store.search_threads()] == ["left"]


async def test_a_client_that_cannot_be_used_is_refused(mongodb_server: MongoServer, mongodb_uri: str) -> None:
    other = with_database(mongodb_server.dsn, "another")
    blocking = MongoClient[Any](mongodb_uri, connect=False)
    assert "AsyncMongoClient, not MongoClient" in await refused(checkpointer_options={"client": blocking})
    assert "AsyncMongoClient, not str" in await refused(checkpointer_options={"client": mongodb_uri})
    blocking.close()
    motor: Any = AsyncIOMotorClient(mongodb_uri)
    options = {"client": motor, "connect_timeout": 1.0}
    assert "connect_timeout has no effect" in await refused(checkpointer_options=options)
    message = await refused(checkpointer_uri=other, checkpointer_options={"client": motor})
    assert "different databases" in message
    await asyncio.to_thread(motor.close)
    careless: Any = AsyncIOMotorClient(mongodb_uri, w=0)
    assert "w=0" in await refused(checkpointer_options={"client": careless})
    await asyncio.to_thread(careless.close)
    native = AsyncMongoClient[Any](mongodb_uri)
    assert "set checkpointer_uri" in await refused(checkpointer_options={"client": native})
    await native.close()


async def test_closing_the_saver_closes_no_client(mongodb_uri: str) -> None:
    async with opened(mongodb_uri, motor=True) as persistence:
        persistence.checkpointer.close()  # type: ignore[attr-defined]
        await finished(persistence.metadata_store, "t")
        await plain(persistence.checkpointer).ainvoke(said("hello"), config_of("t"))


async def test_two_deployments_are_told_apart(
    mongodb_uri: str, private_mongodb_server: LocalMongoServer, standalone_mongodb_server: LocalMongoServer
) -> None:
    for server in (private_mongodb_server, standalone_mongodb_server):
        native = AsyncMongoClient[Any](server.dsn)
        message = await refused(checkpointer_uri=mongodb_uri, checkpointer_options={"client": native})
        assert "different deployments" in message
        await native.close()


@KINDS
def test_a_client_of_another_event_loop_is_refused(mongodb_uri: str, motor: bool) -> None:
    async def make() -> Any:
        client: Any = AsyncIOMotorClient(mongodb_uri) if motor else AsyncMongoClient(mongodb_uri)
        await client.admin.command("ping")
        return client

    with asyncio.Runner() as first:
        client = first.run(make())
        fields: Any = {"checkpointer_uri": mongodb_uri, "checkpointer_options": {"client": client}}
        with asyncio.Runner() as second:
            assert "another event loop" in second.run(refused(**fields))
        if motor:
            client.close()
        else:
            first.run(client.close())


@KINDS
async def test_a_server_that_is_killed_comes_back_under_it(
    private_mongodb_server: LocalMongoServer, motor: bool
) -> None:
    uri = with_database(f"{private_mongodb_server.dsn}&serverSelectionTimeoutMS=1000", "killed")
    async with opened(uri, motor=motor) as persistence:
        run_id = await finished(persistence.metadata_store, "t")
        await plain(persistence.checkpointer).ainvoke(said("hello"), config_of("t"))
        await asyncio.to_thread(private_mongodb_server.kill)
        with pytest.raises(StoreUnavailableError):
            await persistence.metadata_store.get_run(run_id)
        with pytest.raises(StoreUnavailableError):
            await plain(persistence.checkpointer).ainvoke(said("lost"), config_of("t"))
        await asyncio.to_thread(private_mongodb_server.start)
        assert (await the_run(persistence.metadata_store, run_id))["status"] == "success"
        state = await plain(persistence.checkpointer).aget_state(config_of("t"))
        assert state.values["messages"][0] == "hello"


def test_nobody_else_imports_motor(mongodb_uri: str) -> None:
    script = (
        "import asyncio, sys\n"
        "from skeino import SkeinoSettings\n"
        "from skeino.persistence import open_persistence\n"
        "async def main():\n"
        "    settings = SkeinoSettings(checkpointer_scheme='mongodb', checkpointer_uri=sys.argv[1])\n"
        "    async with open_persistence(settings): print('motor' in sys.modules)\n"
        "asyncio.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", script, mongodb_uri], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# ── The saver without transactions ───────────────────────────────────────────────────────────────────────


async def test_langgraph_s_suite_passes_on_a_server_that_stands_alone(
    standalone_mongodb_server: LocalMongoServer,
) -> None:
    uri = standalone_mongodb_server.create_database()
    settings = SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=uri)
    report = await report_on("mongodb", ours(settings))
    assert {name: cell(report, name) for name in CAPABILITIES} == documented("mongodb")
