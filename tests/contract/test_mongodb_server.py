"""What is particular to MongoDB: a server that is away, refuses, is slow, or stands alone."""

import asyncio
import gc
import logging
import socket
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from pymongo import MongoClient
from pymongo.errors import AutoReconnect

from skeino import SkeinoSettings
from skeino.errors import (
    ConfigurationError,
    InvalidInputError,
    SchemaError,
    StoreError,
    StoreUnavailableError,
    ThreadBusyError,
    ThreadNotFoundError,
)
from skeino.persistence import MetadataStoreProtocol, MongoMetadataStore, Persistence, open_persistence
from skeino.persistence.mongodb import connections as mongodb_connections
from skeino.persistence.mongodb import store as mongodb_store
from skeino.runs import new_id
from skeino.testing import (
    T0,
    WORKER,
    ClaimContract,
    at,
    ending,
    everything,
    finished,
    started,
    the_run,
    the_thread,
)
from tests.savers.graphs import config_of, plain, said
from tests.servers.mongodb import LocalMongoServer, MongoServer
from tests.servers.process import free_port

PASSWORD = "hunter2-very-secret"

# PyMongo leaves the socket of a heartbeat that is cancelled by `close()` to the garbage collector.
heartbeats_leave_sockets = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def settings_for(uri: str, **options: Any) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="mongodb", checkpointer_uri=uri, checkpointer_options=options)


async def fails_to_open(settings: SkeinoSettings) -> Exception:
    with pytest.raises(Exception) as failed:  # noqa: PT011 – the caller looks at it
        async with open_persistence(settings):
            pass
    return failed.value


def all_that_is_told(exc: BaseException | None) -> str:
    """The text of the error and of each one behind it, shown or suppressed."""
    told = []
    seen: set[int] = set()
    queue = [exc]
    while queue:
        one = queue.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        told += [str(one), repr(one), repr(one.args), *traceback.format_exception(one)]
        queue += [one.__cause__, one.__context__]
    return "\n".join(told)


# ── Start-up ─────────────────────────────────────────────────────────────────────────────────────────────


@heartbeats_leave_sockets
async def test_a_server_that_is_down_is_named_in_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = free_port()
    begin = time.monotonic()
    exc = await fails_to_open(settings_for(f"mongodb://ann:{PASSWORD}@127.0.0.1:{port}/mine", connect_timeout=1))
    assert time.monotonic() - begin < 3
    assert isinstance(exc, StoreUnavailableError)
    assert f"127.0.0.1:{port}/mine" in str(exc)
    assert "refused" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text
    gc.collect()


@heartbeats_leave_sockets
async def test_a_server_that_is_silent_is_given_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the call, and nobody answers
        port = silent.getsockname()[1]
        begin = time.monotonic()
        exc = await fails_to_open(settings_for(f"mongodb://ann:{PASSWORD}@127.0.0.1:{port}/x", connect_timeout=1))
        assert 0.5 < time.monotonic() - begin < 4
    assert isinstance(exc, StoreUnavailableError)
    assert f"127.0.0.1:{port}" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text
    gc.collect()


async def test_a_wrong_password_is_not_repeated(mongodb_server: MongoServer, caplog: Any) -> None:
    caplog.set_level(logging.DEBUG)
    place = f"{mongodb_server.host}:{mongodb_server.port}"
    exc = await fails_to_open(settings_for(f"mongodb://ann:{PASSWORD}@{place}/mine?authSource=admin"))
    assert isinstance(exc, StoreUnavailableError)
    assert place in str(exc)
    assert "refused the user or the password" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


@pytest.mark.parametrize(
    "uri",
    [
        f"mongodb://ann:{PASSWORD}@[::1/mine",
        f"mongodb://ann:{PASSWORD}%@host/mine",
        f"mongodb://ann:{PASSWORD}@host:port:27017/mine",
        f"mongodb://ann:x@{PASSWORD}@host/mine",
        f"mongodb://ann:{PASSWORD}/x@host/mine",
        f"mongodb://ann:1/{PASSWORD}@host/mine",
        f"{PASSWORD}://host/mine",
        f"mongodb://host/mine?nonsense={PASSWORD}",
        f"mongodb://host/mine?tls={PASSWORD}",
        f"mongodb://host/mine?tls=true&tlsCAFile=/nowhere/{PASSWORD}",
        f"mongodb://host/{PASSWORD} $",
        f"mongodb://host/mine.{PASSWORD}",
        f"mongodb://ann:{PASSWORD}@host/mine?w=0",
        f"mongodb+srv://ann:{PASSWORD}@one.example.com,two.example.com/mine",
        f"mongodb+srv://ann:{PASSWORD}@localhost:27017/mine",
        f"mongodb://ann:{PASSWORD}@",
        f"mysql://ann:{PASSWORD}@host/mine",
        f"ann:{PASSWORD}@host",
    ],
)
async def test_a_malformed_uri_is_not_repeated(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    exc = await fails_to_open(settings_for(uri))
    assert isinstance(exc, ConfigurationError)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text
    assert "\n" not in str(exc)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_max_size": 0}, "pool_max_size"),
        ({"pool_max_sice": 2}, "did you mean pool_max_size"),
        ({"pool_timeout": "5"}, "of type int or float, not str"),
        ({"pool_max_size": True}, "of type int, not bool"),
        ({"operation_timeout": 0}, "'operation_timeout' must be a number above zero"),
        ({"connect_timeout": -1.0}, "'connect_timeout' must be a number above zero"),
    ],
)
async def test_wrong_options_are_refused_before_connecting(options: dict[str, Any], message: str) -> None:
    exc = await fails_to_open(settings_for(f"mongodb://ann:{PASSWORD}@127.0.0.1:1/mine", **options))
    assert isinstance(exc, ConfigurationError)
    assert message in str(exc)


async def test_a_server_that_is_too_old_is_refused(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_connections, "OLDEST_WIRE", 1000)
    exc = await fails_to_open(settings_for(mongodb_uri))
    assert isinstance(exc, ConfigurationError)
    assert "is older than 6.0: upgrade the server." in str(exc)
    with MongoClient[Any](mongodb_uri) as client:
        assert client.get_default_database().list_collection_names() == []


async def test_a_server_that_behaves_as_an_older_one_is_named(private_mongodb_server: LocalMongoServer) -> None:
    uri = private_mongodb_server.create_database()
    with MongoClient[Any](uri) as client:
        client.admin.command({"setFeatureCompatibilityVersion": "5.0"})
        exc = await fails_to_open(settings_for(uri))
        assert isinstance(exc, SchemaError)
        assert "featureCompatibilityVersion" in str(exc)
        client.admin.command({"setFeatureCompatibilityVersion": "6.0"})
    async with open_persistence(settings_for(uri)) as persistence:
        await finished(persistence.metadata_store, "t")


async def test_without_a_database_in_the_uri_each_half_has_its_own(private_mongodb_server: LocalMongoServer) -> None:
    for scheme in ("mongodb", "mongo"):
        settings = settings_for(private_mongodb_server.dsn).model_copy(update={"checkpointer_scheme": scheme})
        async with open_persistence(settings) as persistence:
            await finished(persistence.metadata_store, "t")
            await plain(persistence.checkpointer).ainvoke(said("hello"), config_of("t"))
    with MongoClient[Any](private_mongodb_server.dsn) as client:
        ours = {"app_schema", "app_threads", "app_runs", "app_workers", "app_sweeps"}
        assert set(client["skeino"].list_collection_names()) == ours
        assert set(client["checkpointing_db"].list_collection_names()) == {"checkpoints", "checkpoint_writes"}


async def test_what_the_uri_says_wins_but_for_where_to_read(module_mongodb: str) -> None:
    uri = f"{module_mongodb}&appName=mine&maxPoolSize=3&w=1&readPreference=secondaryPreferred"
    async with open_persistence(settings_for(uri)) as persistence:
        options = database_of(persistence).client.options
        assert (options.pool_options.appname, options.pool_options.max_pool_size) == ("mine", 3)
        assert options.write_concern.document["w"] == 1
        assert options.read_preference.mode == 0
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        options = database_of(persistence).client.options
        assert options.write_concern.document == {"w": "majority", "j": True}
        assert options.pool_options.appname == "skeino"


async def test_a_search_by_status_looks_as_far_as_it_must(mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongodb_store, "LOOKED_AHEAD", (1, 2, None))
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        store = persistence.metadata_store
        for name in ("idle-1", "idle-2", "busy-1", "busy-2", "busy-3", "busy-4", "busy-5"):
            await finished(store, name)
        busy = [await started(store, f"busy-{number}") for number in range(1, 6)]
        found = await store.search_threads(status="idle", sort_by="created_at", limit=2)
        assert [row["thread_id"] for row in found] == ["idle-2", "idle-1"]
        assert len(await store.search_threads(status="busy", limit=3)) == 3
        assert len(await store.search_threads(status="busy", limit=100)) == len(busy)
        assert len(await store.search_threads(status=["busy", "idle"], limit=100)) == 7
        assert await store.search_threads(status=[]) == []


async def test_rows_of_the_rarer_statuses_are_found_by_an_index(mongodb_uri: str) -> None:
    async with open_persistence(settings_for(mongodb_uri)) as persistence:
        store = persistence.metadata_store
        for number in range(50):
            await finished(store, f"idle-{number}")
        for status in ("error", "timeout", "interrupted"):
            await finished(store, f"rare-{status}", status=status, thread_status="error")
        with MongoClient[Any](mongodb_uri) as client:
            database = client.get_default_database()
            database.command("profile", 2)
            assert len(await store.search_runs(status=["error", "timeout"])) == 2
            assert len(await store.search_runs(status="interrupted")) == 1
            assert len(await store.search_threads(status="error")) == 3
            database.command("profile", 0)
            searches = list(database["system.profile"].find({"ns": {"$regex": "[.]app_(runs|threads)$"}}))
        assert len(searches) >= 3  # the leases look, too
        assert max(search["docsExamined"] for search in searches) <= 3


# ── While it runs ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_restart_of_the_server_is_survived(private_mongodb_server: LocalMongoServer) -> None:
    uri = private_mongodb_server.create_database()
    async with open_persistence(settings_for(uri, connect_timeout=2.0)) as persistence:
        await finished(persistence.metadata_store, "t")
        graph = plain(persistence.checkpointer)
        await graph.ainvoke(said("hello"), config_of("t"))
        before = await everything(persistence.metadata_store)
        await asyncio.to_thread(private_mongodb_server.kill)
        begin = time.monotonic()
        with pytest.raises(StoreUnavailableError):
            await started(persistence.metadata_store, "t")
        with pytest.raises(StoreUnavailableError):
            await persistence.checkpointer.aget_tuple(config_of("t"))
        assert time.monotonic() - begin < 8
        await asyncio.to_thread(private_mongodb_server.start)
        assert await everything(persistence.metadata_store) == before
        await finished(persistence.metadata_store, "t")
        assert len((await graph.ainvoke(said("again"), config_of("t")))["messages"]) == 4


async def test_killed_connections_are_replaced_unnoticed(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        for _ in range(5):
            with failing(module_mongodb, ["insert", "update", "findAndModify"], closeConnection=True):
                await finished(persistence.metadata_store, "t")
            with failing(module_mongodb, ["find"], closeConnection=True):
                assert await persistence.checkpointer.aget_tuple(config_of("t")) is None


async def test_a_commit_whose_answer_is_lost_is_settled(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        store = persistence.metadata_store
        with failing(module_mongodb, ["commitTransaction"], closeConnection=True):
            run_id = await started(store, "settled")
        with failing(module_mongodb, ["commitTransaction"], times=3, closeConnection=True):
            assert await store.finish_run(ending(run_id))
        assert (await the_run(store, run_id))["status"] == "success"
        assert (await the_thread(store, "settled"))["status"] == "idle"


@pytest.mark.parametrize(
    ("code", "kind", "said_so"),
    [
        (13, SchemaError, "grant"),
        (89, StoreUnavailableError, "try again"),
        (50, StoreUnavailableError, "in time"),
        (17419, StoreError, "16 MiB"),
        (8, StoreError, "OperationFailure, 8"),
    ],
)
async def test_the_server_s_errors_are_translated(
    module_mongodb: str, code: int, kind: type[Exception], said_so: str
) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        for operation in (persistence.metadata_store.search_runs, lambda: persistence.checkpointer.aget_tuple(T)):
            with failing(module_mongodb, ["find", "aggregate"], times=9, errorCode=code), pytest.raises(kind) as failed:
                await operation()
            assert said_so in str(failed.value)
        with failing(module_mongodb, ["find", "aggregate"], times=9, errorCode=code), pytest.raises(kind):
            await asyncio.to_thread(persistence.checkpointer.get_tuple, T)
        with failing(module_mongodb, ["find", "aggregate"], times=9, errorCode=code), pytest.raises(kind):
            await asyncio.to_thread(lambda: list(persistence.checkpointer.list(T)))


T: Any = config_of("t")


async def test_an_operation_that_takes_too_long_is_given_up(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb, operation_timeout=0.5)) as persistence:
        run_id = await started(persistence.metadata_store, "slow")
        with MongoClient[Any](module_mongodb) as client, client.start_session() as session:
            with session.start_transaction():
                client.get_default_database()["app_runs"].update_many({}, {"$set": {"locked": 1}}, session=session)
                for operation in (
                    lambda: persistence.metadata_store.update_run(run_id, metadata={"a": 1}),
                    lambda: persistence.metadata_store.finish_run(ending(run_id)),
                ):
                    begin = time.monotonic()
                    with pytest.raises(StoreUnavailableError):
                        await operation()
                    assert time.monotonic() - begin < 3
                session.abort_transaction()
        await persistence.metadata_store.update_run(run_id, metadata={"a": 1})


async def test_a_cancellation_that_is_lost_on_its_way_keeps_no_transaction_going(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb, operation_timeout=0.3)) as persistence:
        store = persistence.metadata_store
        assert isinstance(store, MongoMetadataStore)

        async def losing(session: Any) -> None:
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                lost = AutoReconnect("lost")
                lost._add_error_label("TransientTransactionError")
                raise lost from None

        with pytest.raises(StoreUnavailableError, match="in time"):
            await store._database.transact(losing)


async def test_a_cancellation_that_is_lost_on_its_way_is_raised_when_the_operation_is_over(module_mongodb: str) -> None:
    """`asyncio.wait_for` of Python 3.11 loses one that comes together with the answer."""
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        database, begun = database_of(persistence), asyncio.Event()

        async def asks_again_and_again() -> None:
            while True:
                async with database.operation():
                    begun.set()
                    with suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.1)

        asking = asyncio.create_task(asks_again_and_again())
        await begun.wait()
        asking.cancel()
        await asyncio.wait([asking], timeout=5)
        assert asking.cancelled()


async def test_an_exhausted_pool_is_a_typed_error_in_time(module_mongodb: str) -> None:
    settings = settings_for(module_mongodb, pool_max_size=1, pool_timeout=0.3, operation_timeout=3)
    async with open_persistence(settings) as persistence:
        with failing(module_mongodb, ["find"], times=1, blockConnection=True, blockTimeMS=1500):
            begin = time.monotonic()
            results = await asyncio.gather(
                *(persistence.metadata_store.search_runs() for _ in range(4)), return_exceptions=True
            )
            assert time.monotonic() - begin < 3
        errors = [result for result in results if isinstance(result, StoreUnavailableError)]
        assert len(errors) == 3
        assert "pool_max_size" in str(errors[0])
        await finished(persistence.metadata_store, "t")


@pytest.mark.parametrize("pool_max_size", [1, 2])
async def test_a_transaction_never_waits_for_a_connection_of_those_who_wait_for_it(
    module_mongodb: str, pool_max_size: int
) -> None:
    settings = settings_for(module_mongodb, pool_max_size=pool_max_size, pool_timeout=20)
    async with open_persistence(settings) as persistence:
        store = persistence.metadata_store

        async def one(number: int) -> None:
            run_id = await started(store, "contended")
            await store.update_thread("contended", metadata={"last": number})
            assert await store.create_thread("contended", if_exists="do_nothing")
            assert await store.finish_run(ending(run_id))

        begin = time.monotonic()
        await asyncio.gather(*(one(number) for number in range(30)))
        assert time.monotonic() - begin < 15
        assert (await the_thread(store, "contended"))["status"] == "idle"


async def test_the_event_loop_and_its_threads_are_left_alone(module_mongodb: str) -> None:
    """While checkpoints are slow to come, the loop turns, and what others run in threads is not kept waiting."""
    async with open_persistence(settings_for(module_mongodb, pool_max_size=4)) as persistence:
        with failing(module_mongodb, ["find"], times=40, blockConnection=True, blockTimeMS=100):
            reading = [asyncio.create_task(persistence.checkpointer.aget_tuple(T)) for _ in range(40)]
            slowest = 0.0
            while not all(task.done() for task in reading):
                begin = time.monotonic()
                await asyncio.to_thread(threading.get_ident)
                slowest = max(slowest, time.monotonic() - begin)
                await asyncio.sleep(0)
            await asyncio.gather(*reading)
        assert slowest < 0.09, "a thread was waited for"


async def test_a_closed_database_says_so(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        pass
    for operation in (
        persistence.metadata_store.search_runs,
        lambda: started(persistence.metadata_store, "t"),
        lambda: persistence.checkpointer.aget_tuple(T),
        lambda: asyncio.to_thread(persistence.checkpointer.get_tuple, T),
    ):
        with pytest.raises(StoreUnavailableError, match="closed"):
            await operation()


async def test_a_cancelled_start_has_happened_or_not_when_its_caller_knows(module_mongodb: str) -> None:
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        store = persistence.metadata_store
        with failing(module_mongodb, ["commitTransaction"], blockConnection=True, blockTimeMS=200):
            run_id = new_id()
            starting = asyncio.create_task(started(store, "cancelled", run_id=run_id))
            await asyncio.sleep(0.1)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
        assert await store.get_run(run_id) is not None
        assert await store.get_thread("cancelled") is not None


async def test_operators_are_data(module_mongodb: str) -> None:
    """Ids, owners, metadata and filters are values, whatever they look like."""
    async with open_persistence(settings_for(module_mongodb)) as persistence:
        store = persistence.metadata_store
        odd = ["$where", "$owner", "$$ROOT", "a.b", "{$ne: null}", '{"$ne": null}', "$[]"]
        for text in odd:
            metadata = {text: text, "$set": {"$inc": {"a.b": 1}}, "a.c": [{"$gt": ""}]}
            run_id = await started(store, text, owner=text, worker_id=text, metadata=metadata, kwargs=metadata)
            await store.update_thread(text, metadata=metadata, config=metadata, owner=text)
            assert (await store.update_run(run_id, metadata=metadata))["metadata"] == metadata
            assert [row["thread_id"] for row in await store.search_threads(owner=text, metadata={text: text})] == [text]
            end = ending(
                run_id,
                worker_id=text,
                metadata={"$end": "$status"},
                error={"code": "$x", "type": "$y", "message": "$$NOW"},
                first_checkpoint_id="$first",
            )
            assert await store.finish_run(end)
            row = await the_run(store, run_id)
            assert row["metadata"] == {**metadata, "$end": "$status"}
            assert (row["error"], row["first_checkpoint_id"]) == (end["error"], "$first")
        not_text: Any = {"$ne": None}
        for refused in (
            store.get_thread(not_text),
            store.get_run(not_text),
            store.search_threads(owner=not_text),
            store.search_threads(metadata={"k": not_text}),
            store.delete_thread(not_text, force=True),
        ):
            with pytest.raises(InvalidInputError):
                await refused
        assert len(await store.search_threads(ids=odd)) == len(odd)


# ── A server that stands alone ───────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def alone(standalone_mongodb_server: LocalMongoServer) -> AsyncIterator[MetadataStoreProtocol]:
    """A store on a server without transactions."""
    uri = standalone_mongodb_server.create_database()
    async with open_persistence(settings_for(uri)) as persistence:
        assert not database_of(persistence).transactions
        yield persistence.metadata_store
    standalone_mongodb_server.drop_database(uri)


class TestClaimsWithoutTransactions(ClaimContract):
    """Their steps are one after the other there."""

    @pytest.fixture
    def store(self, alone: MetadataStoreProtocol) -> MetadataStoreProtocol:
        return alone


async def test_rows_are_put_back_without_transactions(alone: MetadataStoreProtocol) -> None:
    run_id = await finished(alone, "t", start={"owner": "ann"})
    row, of_it = await the_run(alone, run_id), await the_thread(alone, "t")
    await alone.delete_thread("t")

    with pytest.raises(ThreadNotFoundError):
        await alone.restore_runs([row])
    assert (await alone.restore_threads([of_it]), await alone.restore_threads([of_it])) == (1, 0)
    assert (await alone.restore_runs([row]), await alone.restore_runs([row])) == (1, 0)
    assert (await the_run(alone, run_id), await the_thread(alone, "t")) == (row, of_it)


async def test_runs_live_without_transactions(alone: MetadataStoreProtocol) -> None:
    run_id = await started(alone, "t", owner="ann", created_at=T0)
    await started(alone, "t", run_id=run_id, owner="ann")
    await started(alone, "other", run_id=run_id, owner="ann")
    assert await alone.get_thread("other") is None
    with pytest.raises(ThreadNotFoundError):
        await started(alone, "t", owner="bob")
    with pytest.raises(ThreadBusyError):
        await alone.delete_thread("t")
    assert await alone.finish_run(ending(run_id, thread_status="interrupted"))
    assert await alone.finish_run(ending(run_id))
    assert not await alone.finish_run(ending(run_id, finished_at=at(61)))
    assert (await the_thread(alone, "t"))["status"] == "interrupted"
    asking = await started(alone, "asked")
    await alone.delete_thread("asked", ignore_run=asking)
    assert (await the_run(alone, asking))["thread_id"] is None
    assert await alone.finish_run(ending(asking))
    reading = await started(alone, "t", owner="ann", create_thread=False)
    assert await alone.finish_run(ending(reading, thread_id="t"))
    assert (await the_run(alone, reading))["thread_id"] == "t"
    attached = await started(alone)
    await alone.attach_thread(attached, "a", owner=None)
    assert await alone.interrupt_runs(WORKER, {"code": "x", "type": None, "message": "x"}) == 1
    assert (await the_thread(alone, "a"))["status"] == "interrupted"
    await alone.delete_thread("t")
    await alone.delete_thread("a")
    threads, runs = await everything(alone)
    assert (threads, [row["run_id"] for row in runs]) == ([], [asking])


async def test_starting_and_deleting_leave_no_orphan_without_transactions(alone: MetadataStoreProtocol) -> None:
    async def start(number: int) -> None:
        run_id = await started(alone, f"t{number % 3}")
        await alone.attach_thread(await started(alone), f"t{number % 3}", owner=None)
        await alone.finish_run(ending(run_id))

    async def delete(number: int) -> None:
        with suppress(ThreadNotFoundError, ThreadBusyError):
            await alone.delete_thread(f"t{number % 3}", force=number % 2 == 0)

    async with asyncio.timeout(60):
        for _ in range(5):
            await asyncio.gather(*(step(number) for number in range(12) for step in (start, delete)))
    threads, runs = await everything(alone)
    assert {row["thread_id"] for row in runs} - {None} <= {row["thread_id"] for row in threads}


async def test_a_cancelled_start_is_whole_without_transactions(alone: MetadataStoreProtocol) -> None:
    ids = [new_id() for _ in range(30)]
    tasks = [asyncio.create_task(started(alone, f"t-{run_id}", run_id=run_id)) for run_id in ids]
    for number, task in enumerate(tasks):
        await asyncio.sleep(0)
        if number % 2:
            task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for run_id in ids:
        assert (await alone.get_thread(f"t-{run_id}") is None) is (await alone.get_run(run_id) is None)


async def test_a_cancelled_end_is_whole_without_transactions(alone: MetadataStoreProtocol) -> None:
    ids = [await started(alone, f"t-{number}") for number in range(20)]
    for number, run_id in enumerate(ids):
        end = asyncio.ensure_future(alone.finish_run(ending(run_id, thread_status="interrupted")))
        await asyncio.sleep(0.0005 * number)
        end.cancel()
    async with asyncio.timeout(10):
        while await alone.search_threads(status=["idle", "busy"]):
            await asyncio.sleep(0.01)
    assert {row["status"] for row in await alone.search_runs()} == {"success"}


def database_of(persistence: Persistence) -> Any:
    assert isinstance(persistence.metadata_store, MongoMetadataStore)
    return persistence.metadata_store._database


@contextmanager
def failing(uri: str, commands: list[str], *, times: int = 1, **how: Any) -> Iterator[None]:
    """Make so many of skeino's commands fail in the server (its `failCommand` fail point)."""
    with MongoClient[Any](uri) as client:
        data = {"failCommands": commands, "appName": "skeino", **how}
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})
        try:
            yield
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
