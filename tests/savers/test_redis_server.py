"""What is particular to Redis: a server that is away, refuses or lacks its modules; ids that are found as they are."""

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
from langgraph.checkpoint.base import empty_checkpoint

from skeino import SkeinoSettings
from skeino.errors import (
    ConfigurationError,
    InvalidInputError,
    SchemaError,
    SplitBrainError,
    StoreError,
    StoreUnavailableError,
)
from skeino.persistence import (
    CheckpointerSpec,
    InMemoryMetadataStore,
    open_checkpointer,
    open_persistence,
    register_metadata_store,
    registry,
)
from skeino.persistence.redis import history
from skeino_asgi import RunMiddleware, RunTracker
from tests.contract.test_mongodb_server import all_that_is_told, fails_to_open
from tests.savers.graphs import Saver, checkpoints, config_of, plain, said, stamps
from tests.savers.test_server_killed import Chat
from tests.servers.process import free_port
from tests.servers.redis import LocalRedisServer, RedisInstallation, RedisServer, start_redis

PASSWORD = "hunter2-very-secret"


def settings_for(uri: str, **options: Any) -> SkeinoSettings:
    return SkeinoSettings(
        checkpointer_scheme="redis", checkpointer_uri=uri, checkpointer_options=options, allow_ephemeral_metadata=True
    )


@asynccontextmanager
async def opened(uri: str, **options: Any) -> AsyncIterator[Any]:
    async with open_checkpointer(settings_for(uri, **options)) as saver:
        yield saver


# ── Start-up ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_without_consent_to_a_run_list_in_memory_it_does_not_start(redis_dsn: str) -> None:
    with pytest.raises(SplitBrainError, match=r"'redis' .* choose another scheme, .* allow_ephemeral_metadata=True"):
        async with open_persistence(SkeinoSettings(checkpointer_scheme="redis", checkpointer_uri=redis_dsn)):
            raise AssertionError


async def test_owners_are_refused_where_a_restart_forgets_them(redis_dsn: str) -> None:
    tracker = RunTracker(settings_for(redis_dsn))
    with pytest.raises(ConfigurationError, match="owner= needs a durable list of threads"):
        RunMiddleware(None, tracker=tracker, owner=lambda connection: "ann")  # type: ignore[arg-type]
    async with tracker.lifespan():
        with pytest.raises(ConfigurationError, match="owner= needs a durable list of threads"):
            tracker.run(thread_id="t", owner="ann")
    needless = RunTracker(SkeinoSettings(checkpointer_scheme="memory", allow_ephemeral_metadata=True))
    async with needless.lifespan(), needless.run(thread_id="t", owner="ann") as run:
        assert run.owner == "ann"


async def test_a_metadata_store_can_be_registered_beside_it(redis_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_metadata_stores", {})

    @register_metadata_store("redis")
    @asynccontextmanager
    async def rows(spec: CheckpointerSpec) -> AsyncIterator[InMemoryMetadataStore]:
        yield InMemoryMetadataStore()

    tracker = RunTracker(SkeinoSettings(checkpointer_scheme="redis", checkpointer_uri=redis_dsn))
    async with tracker.lifespan(), tracker.run(thread_id="t", owner="ann") as run:
        await plain(tracker.checkpointer).ainvoke(said("hello"), run.config)
    with pytest.raises(ConfigurationError, match="registered already"):
        register_metadata_store("redis")(rows)
    with pytest.raises(ConfigurationError, match="registered already"):
        register_metadata_store("sqlite")(rows)


async def test_a_server_that_is_down_is_named_in_seconds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = free_port()
    begin = time.monotonic()
    exc = await fails_to_open(settings_for(f"redis://ann:{PASSWORD}@127.0.0.1:{port}"))
    assert time.monotonic() - begin < 3
    assert isinstance(exc, StoreUnavailableError)
    assert f"127.0.0.1:{port}/0" in str(exc)
    assert "refused" in str(exc)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


async def test_a_server_that_is_silent_is_given_up_in_time(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes the call, and nobody answers
        port = silent.getsockname()[1]
        begin = time.monotonic()
        exc = await fails_to_open(settings_for(f"redis://ann:{PASSWORD}@127.0.0.1:{port}", operation_timeout=1))
        assert 0.5 < time.monotonic() - begin < 4
    assert isinstance(exc, StoreUnavailableError)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


async def test_a_password_is_asked_for_and_not_repeated(
    redis_installation: RedisInstallation, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with start_redis(redis_installation, password=PASSWORD) as server:
        async with opened(server.dsn) as saver:
            await plain(saver).ainvoke(said("hello"), config_of("t"))
        place = f"127.0.0.1:{server.port}"
        for uri in (f"redis://{place}", f"redis://:{PASSWORD}x@{place}", f"redis://ann:{PASSWORD}@{place}"):
            exc = await fails_to_open(settings_for(uri))
            assert isinstance(exc, StoreUnavailableError)
            assert place in str(exc)
            assert "password" in str(exc)
            assert PASSWORD not in all_that_is_told(exc) + caplog.text


async def test_a_server_without_its_modules_is_told_apart(redis_installation: RedisInstallation) -> None:
    with start_redis(redis_installation, modules=False) as server:
        exc = await fails_to_open(settings_for(server.dsn))
    assert isinstance(exc, ConfigurationError)
    assert "lacks the modules Search and JSON" in str(exc)
    assert "Redis Stack" in str(exc)


async def test_another_database_than_the_first_is_refused(redis_dsn: str) -> None:
    exc = await fails_to_open(settings_for(f"{redis_dsn}/3"))
    assert isinstance(exc, ConfigurationError)
    assert "database 0 only" in str(exc)


@pytest.mark.parametrize(
    "uri",
    [
        f"redis://ann:{PASSWORD}@[::1",
        f"redis://ann:{PASSWORD}/x@127.0.0.1:6379",
        f"redis://ann:{PASSWORD}@127.0.0.1:port",
        f"redis://:{PASSWORD}@",
        f"postgresql://ann:{PASSWORD}@127.0.0.1/x",
        f"127.0.0.1:6379?password={PASSWORD}",
        f"redis://127.0.0.1:6379/0?socket_timeout={PASSWORD}",
    ],
)
async def test_a_malformed_uri_is_not_repeated(uri: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    exc = await fails_to_open(settings_for(uri))
    assert isinstance(exc, ConfigurationError)
    assert PASSWORD not in all_that_is_told(exc) + caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_max_size": 0}, "pool_max_size must be at least 1"),
        ({"pool_size": 3}, "did you mean pool_max_size"),
        ({"operation_timeout": "1"}, "must be of type int or float"),
    ],
)
async def test_wrong_options_are_refused_before_connecting(options: dict[str, Any], message: str) -> None:
    exc = await fails_to_open(settings_for("redis://127.0.0.1:1", **options))
    assert isinstance(exc, ConfigurationError)
    assert message in str(exc)


async def test_the_indexes_are_made_only_where_that_is_allowed(private_redis_server: LocalRedisServer) -> None:
    with private_redis_server.client() as client:
        client.flushall()
    exc = await fails_to_open(settings_for(private_redis_server.dsn, setup_schema=False))
    assert isinstance(exc, SchemaError)
    assert "skeino_checkpoint" in str(exc)
    assert "setup_schema=True" in str(exc)
    async with opened(private_redis_server.dsn) as saver:
        await plain(saver).ainvoke(said("hello"), config_of("t"))
    async with opened(private_redis_server.dsn, setup_schema=False) as saver:
        assert len(await checkpoints(saver, "t")) == 3


def test_many_processes_open_an_empty_server_at_once(private_redis_server: LocalRedisServer) -> None:
    with private_redis_server.client() as client:
        client.flushall()
    script = (
        "import asyncio, sys; from skeino import SkeinoSettings; from skeino.persistence import open_checkpointer\n"
        "settings = SkeinoSettings(checkpointer_scheme='redis', checkpointer_uri=sys.argv[1])\n"
        "async def main():\n"
        "    async with open_checkpointer(settings) as s:\n"
        "        assert await s.aget_tuple({'configurable': {'thread_id': 't'}}) is None\n"
        "asyncio.run(main())"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, private_redis_server.dsn], stderr=subprocess.PIPE)
        for _ in range(8)
    ]
    errors = [process.communicate(timeout=60)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 8, errors


async def test_many_openings_meet_in_the_making_of_the_indexes(private_redis_server: LocalRedisServer) -> None:
    with private_redis_server.client() as client:
        client.flushall()

    async def open_and_close() -> None:
        async with opened(private_redis_server.dsn):
            pass

    await asyncio.gather(*(open_and_close() for _ in range(16)))
    with private_redis_server.client() as client:
        made: Any = client.execute_command("FT._LIST")
    assert sorted(made) == [b"skeino_checkpoint", b"skeino_checkpoint_write"]


async def test_what_a_stock_saver_stored_before_is_found_at_once(private_redis_server: LocalRedisServer) -> None:
    with private_redis_server.client() as client:
        client.flushall()
    async with opened(private_redis_server.dsn) as saver:
        for number in range(300):
            await saver.aput(config_of(f"t{number}", checkpoint_ns=""), empty_checkpoint(), {}, {})
    with private_redis_server.client() as client:
        client.ft("skeino_checkpoint").dropindex()
    async with opened(private_redis_server.dsn) as saver:
        assert len([one async for one in saver.alist(None)]) == 300


# ── Finding ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_id_is_found_as_it_is(redis_dsn: str) -> None:
    ids = [
        "a",
        "A",
        "a,b",
        "b",
        "a b",
        "a-b",
        "*",
        "a*",
        "{a}",
        "a|b",
        "@a:{b}",
        "$a",
        "\\",
        '"',
        "'",
        "ä",
        "雪",
        "a:b",
    ]
    async with opened(redis_dsn) as saver:
        for one in ids:
            await saver.aput(config_of(one, checkpoint_ns=""), empty_checkpoint(), {"source": one}, {})
        for one in ids:
            assert [found.metadata.get("source") for found in await checkpoints(saver, one)] == [one]
        await saver.acopy_thread("a,b", "a,c")
        await saver.adelete_thread("a")
        await saver.aprune(["*"], strategy="delete")
        for one in ids:
            assert len(await checkpoints(saver, one)) == (one not in ("a", "*"))


async def test_lists_go_on_page_after_page(redis_dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PAGE", 3)
    async with opened(redis_dsn) as saver:
        stored = [
            await saver.aput(config_of("t", checkpoint_ns=""), empty_checkpoint(), {"step": n}, {}) for n in range(10)
        ]
        assert [one.config for one in await checkpoints(saver, "t")] == stored[::-1]
        before = [one async for one in saver.alist(config_of("t"), before=stored[5], limit=3)]
        assert [one.config for one in before] == [stored[4], stored[3], stored[2]]
        seventh = [one async for one in saver.alist(config_of("t"), filter={"step": 7})]
        assert [one.config for one in seventh] == [stored[7]]
        await saver.acopy_thread("t", "copy")
        assert len(await checkpoints(saver, "copy")) == 10
        await saver.adelete_thread("t")
        assert await checkpoints(saver, "t") == []


async def test_a_search_that_takes_long_is_whole(private_redis_server: LocalRedisServer) -> None:
    count = 15_000
    fields = {"thread_id": "t", "checkpoint_ns": "__empty__", "run_id": "", "parent_checkpoint_id": ""}
    with private_redis_server.client() as client:
        client.flushall()
        async with opened(private_redis_server.dsn) as saver:
            with client.pipeline(transaction=False) as pipeline:
                for number in range(count):
                    document = {**fields, "checkpoint_id": f"{number:06}", "metadata": "{}"}
                    pipeline.json().set(f"checkpoint:t:__empty__:{number:06}", "$", document)
                pipeline.execute()
            client.execute_command("FT.CONFIG", "SET", "TIMEOUT", "1")  # ms; at it, the server answers with a part
            try:
                assert len(await history.places(saver, config_of("t"), None)) == count
                await saver.adelete_thread("t")
            finally:
                client.execute_command("FT.CONFIG", "SET", "TIMEOUT", "500")
        assert list(client.scan_iter("checkpoint*")) == []


async def test_nothing_is_left_of_a_deleted_thread(private_redis_server: LocalRedisServer) -> None:
    with private_redis_server.client() as client:
        client.flushall()
        async with opened(private_redis_server.dsn) as saver:
            await plain(saver).ainvoke(said("hello"), config_of("t"))
            assert list(client.scan_iter("*"))
            await saver.adelete_thread("t")
        assert list(client.scan_iter("*")) == []


async def test_the_callers_config_is_not_stored_and_forges_no_run(redis_dsn: str) -> None:
    tracker = RunTracker(settings_for(redis_dsn))
    async with tracker.lifespan():
        async with tracker.run(thread_id="t") as run:
            config = config_of("t", run_id="SPOOF", api_key=PASSWORD)
            await plain(tracker.checkpointer).ainvoke(said("hello"), config)
        assert stamps(await checkpoints(tracker.checkpointer, "t")) == [run.run_id] * 3
        saver: Any = tracker.checkpointer
        await saver.adelete_for_runs(["SPOOF"])
        assert len(await checkpoints(saver, "t")) == 3
        await saver.adelete_for_runs([run.run_id])
        assert await checkpoints(saver, "t") == []


async def test_a_cancelled_write_is_whole(redis_dsn: str) -> None:
    async with opened(redis_dsn) as saver:
        parent = await saver.aput(config_of("t", checkpoint_ns=""), empty_checkpoint(), {}, {})
        for _ in range(20):
            writing = asyncio.create_task(saver.aput(parent, empty_checkpoint(), {"source": "loop"}, {}))
            await asyncio.sleep(0)
            writing.cancel()
            await asyncio.wait([writing])
        children = (await checkpoints(saver, "t"))[:-1]
        assert children
        assert all(one.parent_config == parent and one.metadata == {"source": "loop"} for one in children)


async def test_a_cancellation_reaches_the_graph(redis_dsn: str) -> None:
    tracker = RunTracker(settings_for(redis_dsn))
    async with tracker.lifespan():
        for turn in range(8):  # redis-py lost one in fifteen where it had a time limit of its own
            going = [asyncio.create_task(Chat(tracker, f"t{turn}-{number}").go_on()) for number in range(8)]
            await asyncio.sleep(0.1 + turn / 200)
            for task in going:
                task.cancel()
            _, deaf = await asyncio.wait(going, timeout=5)
            assert not deaf


# ── Living with the server ───────────────────────────────────────────────────────────────────────────────


async def test_state_survives_a_restart_and_the_list_of_runs_does_not(private_redis_server: LocalRedisServer) -> None:
    settings = settings_for(private_redis_server.create_database())
    tracker = RunTracker(settings)
    async with tracker.lifespan(), tracker.run(thread_id="t") as run:
        await plain(tracker.checkpointer).ainvoke(said("hello"), run.config)
    await asyncio.to_thread(private_redis_server.kill)
    await asyncio.to_thread(private_redis_server.start)
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        assert stamps(await checkpoints(tracker.checkpointer, "t")) == [run.run_id] * 3
        assert await tracker.metadata_store.get_run(run.run_id) is None
        async with tracker.run(thread_id="t") as again:
            result = await plain(tracker.checkpointer).ainvoke(said("again"), again.config)
        assert len(result["messages"]) == 4


async def test_killed_connections_are_replaced_unnoticed(redis_server: RedisServer, redis_dsn: str) -> None:
    async with opened(redis_dsn) as saver:
        await asyncio.gather(*(plain(saver).ainvoke(said("hello"), config_of(f"t{n}")) for n in range(5)))
        with redis_server.client() as client:
            assert client.client_kill_filter(_type="normal", skipme=True) >= 1
        await asyncio.gather(*(plain(saver).ainvoke(said("again"), config_of(f"t{n}")) for n in range(5)))


async def test_an_exhausted_pool_is_a_typed_error_in_time(redis_server: RedisServer, redis_dsn: str) -> None:
    async with opened(redis_dsn, pool_max_size=1, pool_timeout=0.3) as saver:
        with redis_server.client() as client:
            client.client_pause(1500)
            slow = asyncio.create_task(saver.aget_tuple(config_of("t")))
            await asyncio.sleep(0.1)
            begin = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="pool_max_size"):
                await saver.aget_tuple(config_of("t"))
            assert time.monotonic() - begin < 1.2
            await slow


async def test_an_operation_that_takes_too_long_is_given_up(redis_server: RedisServer, redis_dsn: str) -> None:
    async with opened(redis_dsn, operation_timeout=0.3) as saver:
        with redis_server.client() as client:
            client.client_pause(1500)
            with pytest.raises(StoreUnavailableError, match="in time") as caught:
                await plain(saver).ainvoke(said("hello"), config_of("t"))
            assert caught.value.maybe_done
            await asyncio.sleep(1.5)
        await plain(saver).ainvoke(said("hello"), config_of("t"))


async def test_a_write_that_is_given_up_is_not_half_made(redis_server: RedisServer, redis_dsn: str) -> None:
    async with opened(redis_dsn, operation_timeout=0.3) as saver:
        parent = await saver.aput(config_of("t", checkpoint_ns=""), empty_checkpoint(), {"source": "input"}, {})
        child = empty_checkpoint()
        with redis_server.client() as client:
            client.client_pause(1500)
            begin = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="in time") as caught:
                await saver.aput(parent, child, {"source": "loop"}, {})
            assert time.monotonic() - begin < 1.2
            assert caught.value.maybe_done
            client.client_unpause()
        for found in (await checkpoints(saver, "t"))[:-1]:  # it may be there: then as it was meant
            assert (found.parent_config, found.metadata) == (parent, {"source": "loop"})
        stored = await saver.aput(parent, child, {"source": "loop"}, {})
        assert [one.config for one in await checkpoints(saver, "t")] == [stored, parent]


async def test_the_server_s_own_text_is_not_repeated(redis_server: RedisServer, redis_dsn: str) -> None:
    async with opened(redis_dsn) as saver:
        with redis_server.client() as client:
            client.set("checkpoint_latest:t:__empty__", "checkpoint:t")
            client.set("checkpoint:t", PASSWORD)  # of another type
            with pytest.raises(StoreError) as caught:
                await saver.aget_tuple(config_of("t"))
        assert PASSWORD not in str(caught.value)


async def test_a_closed_client_says_so(redis_dsn: str) -> None:
    async with opened(redis_dsn) as saver:
        pass
    with pytest.raises(StoreUnavailableError, match="closed"):
        await saver.aget_tuple(config_of("t"))


async def test_a_blocking_method_is_for_other_threads(redis_dsn: str) -> None:
    async with opened(redis_dsn) as opened_saver:
        saver: Saver = opened_saver
        stored = await saver.aput(config_of("t", checkpoint_ns=""), empty_checkpoint(), {}, {})
        await asyncio.to_thread(saver.put_writes, stored, [("messages", ["x"])], "task", "path")
        with redis.Redis.from_url(redis_dsn) as client:
            written: Any = client.json().get(next(client.scan_iter("checkpoint_write:t:*")))
        assert written["task_path"] == "path"
        (found,) = await asyncio.to_thread(lambda: list(saver.list(config_of("t"))))
        assert found.pending_writes == [("task", "messages", ["x"])]
        with pytest.raises(InvalidInputError, match="use the asynchronous one"):
            saver.put_writes(stored, [("messages", ["x"])], "task", "path")
        await asyncio.to_thread(saver.delete_thread, "t")
        assert await saver.aget_tuple(config_of("t")) is None


def test_a_driver_that_is_missing_is_named_with_its_extra() -> None:
    script = (
        "import sys, asyncio; sys.modules['redis'] = None\n"
        "from skeino import SkeinoSettings, MissingDriverError; from skeino.persistence import open_checkpointer\n"
        "async def main():\n"
        "    async with open_checkpointer(SkeinoSettings(checkpointer_scheme='redis', checkpointer_uri='redis://x')):\n"
        "        pass\n"
        "try: asyncio.run(main())\n"
        "except MissingDriverError as exc: print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "pip install 'skeino-asgi[redis]'" in done.stdout
