"""Connections that break or hang: each operation ends in time, and is done once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, get_args

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from skeino import SkeinoSettings, StoreUnavailableError
from skeino.persistence import Persistence, open_persistence
from skeino.testing import ending, started, the_run
from tests.contract.backends import MONGODB, POSTGRES, empty, empty_mongodb
from tests.servers.proxy import PAUSES_OF_PYMONGO, Fault, Proxy, Script, proxy_to, through

BREAKS: list[Any] = [fault for fault in get_args(Fault) if fault not in ("held", "late")]


class Broken:
    """A database behind a proxy."""

    def __init__(self, scheme: str, uri: str, proxy: Proxy, script: Script) -> None:
        self.scheme = scheme
        self.uri = through(proxy.port, scheme, uri)
        self.proxy = proxy
        self.script = script

    @asynccontextmanager
    async def opened(self, **options: Any) -> AsyncIterator[Persistence]:
        settings = SkeinoSettings(
            checkpointer_scheme=self.scheme, checkpointer_uri=self.uri, checkpointer_options=options
        )
        async with open_persistence(settings) as persistence:
            yield persistence

    @contextmanager
    def breaking(self, *faults: Fault | None) -> Iterator[None]:
        """The next operations fare like that, and within the block all of them have been."""
        before = self.proxy.landed.total()
        self.script.faults = [*faults]
        yield
        assert self.script.faults == []
        assert self.proxy.landed.total() - before == len([fault for fault in faults if fault is not None])


@pytest.fixture(params=[POSTGRES, MONGODB])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Broken]:
    for pause in PAUSES_OF_PYMONGO:
        monkeypatch.setattr(pause, 0.02)
    uri = request.getfixturevalue("module_database" if request.param == "postgres" else "module_mongodb")
    script = Script(request.param)
    with proxy_to(uri, script) as proxy:
        yield Broken(request.param, uri, proxy, script)
    (empty if request.param == "postgres" else empty_mongodb)(uri)


def config(thread_id: str) -> Any:
    return {"configurable": {"thread_id": thread_id, "checkpoint_ns": ""}}


@pytest.mark.parametrize("fault", BREAKS)
async def test_a_run_lives_on_however_often_its_connections_break(broken: Broken, fault: Fault) -> None:
    async with broken.opened() as persistence:
        store = persistence.metadata_store
        await started(store)  # which connects
        with broken.breaking(fault):
            alone = await started(store)
        with broken.breaking(fault):
            on_thread = await started(store, "t")
        with broken.breaking(fault):
            await store.attach_thread(alone, "u", owner=None)
        with broken.breaking(fault):
            assert (await the_run(store, alone))["thread_id"] == "u"
        with broken.breaking(fault):
            assert await store.finish_run(ending(alone)) is True
        with broken.breaking(fault):
            assert await store.finish_run(ending(on_thread)) is True
        for run_id in (alone, on_thread):
            row = await the_run(store, run_id)
            assert (row["status"], row["late_outcome"]) == ("success", None)
        assert len(await store.search_runs()) == 3
        assert len(await store.search_threads()) == 2


@pytest.mark.parametrize("fault", BREAKS)
async def test_checkpoints_are_stored_and_read_though_connections_break(broken: Broken, fault: Fault) -> None:
    async with broken.opened() as persistence:
        saver = persistence.checkpointer
        assert await saver.aget_tuple(config("t")) is None
        checkpoint: Any = {**empty_checkpoint(), "channel_values": {"a": [1]}, "channel_versions": {"a": "1"}}
        with broken.breaking(fault):
            stored = await saver.aput(config("t"), checkpoint, {}, {"a": "1"})
        with broken.breaking(fault):
            await saver.aput_writes(stored, [("a", 2)], "task")
        with broken.breaking(fault):
            found = await saver.aget_tuple(config("t"))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": [1]}
        assert found.pending_writes == [("task", "a", 2)]
        with broken.breaking(fault):
            assert len([one async for one in saver.alist(config("t"))]) == 1


async def test_writes_that_share_a_broken_connection_are_all_done_once(broken: Broken) -> None:
    async with broken.opened() as persistence:
        store = persistence.metadata_store
        await started(store)
        for number, fault in enumerate(BREAKS):
            at = 0 if broken.scheme == "postgres" else number  # a transaction of MongoDB has several operations
            with broken.breaking(*[None] * at, fault):
                run_ids = await asyncio.gather(*(started(store, f"t{thread % 7}") for thread in range(40)))
            with broken.breaking(*[None] * at, fault):
                assert all(await asyncio.gather(*(store.finish_run(ending(run_id)) for run_id in run_ids)))
        rows = await store.search_runs(limit=1000)
        assert len(rows) == 1 + 40 * len(BREAKS)
        assert len([row for row in rows if row["status"] == "success" and row["late_outcome"] is None]) == len(rows) - 1


async def test_a_network_that_swallows_everything_is_given_up_in_time_and_forgotten(broken: Broken) -> None:
    async with broken.opened(operation_timeout=1.0) as persistence:
        store = persistence.metadata_store
        run_id = await started(store, "t")
        with broken.breaking("held"):
            begin = time.monotonic()
            with pytest.raises(StoreUnavailableError, match="in time") as failed:
                await store.finish_run(ending(run_id))
            assert failed.value.maybe_done
            assert time.monotonic() - begin < 3
            async with asyncio.timeout(15):
                while True:
                    try:
                        await started(store, "t")
                        break
                    except StoreUnavailableError:
                        await asyncio.sleep(0.05)
            await asyncio.sleep(max(0.0, begin + 4.5 - time.monotonic()))
        assert await store.finish_run(ending(run_id))
