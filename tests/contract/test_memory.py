"""What is particular to the store in memory: it forgets."""

import pytest

from skeino import ConfigurationError, SkeinoSettings
from skeino.persistence import InMemoryMetadataStore, open_persistence
from skeino.testing import ending, started


async def test_beyond_max_runs_the_oldest_finished_are_forgotten() -> None:
    store = InMemoryMetadataStore(max_runs=2)
    active = [await started(store, f"t{number}") for number in range(10)]
    assert len(await store.search_runs()) == 10, "a run that is active is never forgotten"
    for run_id in active:
        assert await store.finish_run(ending(run_id))
    newest = [await started(store) for _ in range(2)]
    assert [row["run_id"] for row in await store.search_runs(sort_order="asc")] == newest


async def test_the_oldest_run_may_stay_active_while_others_come_and_go() -> None:
    store = InMemoryMetadataStore(max_runs=3)
    oldest = await started(store)
    for _ in range(20):
        await store.finish_run(ending(await started(store)))
    rows = await store.search_runs(sort_order="asc")
    assert rows[0]["run_id"] == oldest
    assert len(rows) == 3


async def test_max_runs_is_an_option_of_the_scheme() -> None:
    settings = SkeinoSettings(checkpointer_options={"max_runs": 1})
    async with open_persistence(settings) as persistence:
        for _ in range(3):
            await persistence.metadata_store.finish_run(ending(await started(persistence.metadata_store)))
        assert len(await persistence.metadata_store.search_runs()) == 1


def test_keeping_no_run_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least 1"):
        InMemoryMetadataStore(max_runs=0)
