"""Schemes of one's own are copied through LangGraph's interface alone."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from skeino import SkeinoSettings
from skeino.copying import copy_persistence
from skeino.persistence import (
    CheckpointerSpec,
    InMemoryMetadataStore,
    MetadataStoreProtocol,
    open_persistence,
    register_checkpointer,
    register_metadata_store,
    registry,
)
from tests.copying.conftest import Places
from tests.copying.house import THREADS, all_rows, all_state, application, furnish, go_on


@pytest.fixture
def mydb(monkeypatch: pytest.MonkeyPatch) -> SkeinoSettings:
    """A database that outlives its openings, if not the test."""
    monkeypatch.setattr(registry, "_checkpointers", dict(registry._checkpointers))
    monkeypatch.setattr(registry, "_metadata_stores", dict(registry._metadata_stores))
    saver, store = InMemorySaver(), InMemoryMetadataStore()

    @register_checkpointer("mydb")
    @asynccontextmanager
    async def open_mydb(spec: CheckpointerSpec) -> AsyncIterator[InMemorySaver]:
        yield saver

    @register_metadata_store("mydb")
    @asynccontextmanager
    async def open_rows(spec: CheckpointerSpec) -> AsyncIterator[MetadataStoreProtocol]:
        yield store

    return SkeinoSettings(checkpointer_scheme="mydb", checkpointer_uri="mydb://x")


async def test_there_and_back_again(mydb: SkeinoSettings, place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    with application():
        await furnish(source)

    there = await copy_persistence(source, mydb)
    back = await copy_persistence(mydb, target)

    assert there.verified, there.differences
    assert back.verified, back.differences
    assert back.checkpoints.copied == there.checkpoints.copied > 0
    assert back.pending_writes.copied == there.pending_writes.copied > 0
    assert await all_rows(target) == await all_rows(source)
    with application():
        async with open_persistence(source) as first, open_persistence(target) as last:
            before, after = await all_state(first), await all_state(last)
            assert {place: one[:-1] for place, one in after.items()} == {
                place: one[:-1] for place, one in before.items()
            }
            for thread_id in THREADS:
                if thread_id != "gaps":
                    assert (await go_on(thread_id, last))[0] == (await go_on(thread_id, first))[0]
