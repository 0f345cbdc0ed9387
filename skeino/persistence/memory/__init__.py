"""The scheme `memory`: state, threads and runs in this process, gone with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from skeino.persistence.memory.saver import StampedInMemorySaver
from skeino.persistence.memory.store import MAX_RUNS, InMemoryMetadataStore
from skeino.persistence.registry import CheckpointerSpec

__all__ = ["MAX_RUNS", "InMemoryMetadataStore", "StampedInMemorySaver", "open_saver", "open_store"]


@asynccontextmanager
async def open_saver(spec: CheckpointerSpec) -> AsyncIterator[StampedInMemorySaver]:
    """The checkpointer of scheme `memory`."""
    spec.checked_options(max_runs=(int, MAX_RUNS))
    yield StampedInMemorySaver()


@asynccontextmanager
async def open_store(spec: CheckpointerSpec) -> AsyncIterator[InMemoryMetadataStore]:
    """The metadata store of scheme `memory`; option `max_runs`."""
    yield InMemoryMetadataStore(**spec.checked_options(max_runs=(int, MAX_RUNS)), thread_ttl=spec.thread_ttl)
