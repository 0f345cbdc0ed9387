"""Of the backends that outlive the process: what was acknowledged is there after opening again."""

from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from skeino.testing import ending, everything, finished, started


async def test_all_rows_are_there_after_opening_again(durable_settings: SkeinoSettings) -> None:
    error = {"code": "c", "type": None, "message": "m"}
    async with open_persistence(durable_settings) as opened:
        store = opened.metadata_store
        await store.create_thread("t", owner="ann", metadata={"a": [1, None]}, config={"b": 1.5})
        await store.update_thread("t", ttl={"strategy": "delete", "ttl": 2})
        await finished(store, "t", start={"owner": "ann", "kwargs": {"k": "雪"}}, error=error, checkpoint_count=2)
        await started(store, "other", metadata={"m": True})
        await store.create_thread("deleted")
        await store.delete_thread("deleted")
        before = await everything(store)
    async with open_persistence(durable_settings) as opened:
        assert await everything(opened.metadata_store) == before
        assert len(before[0]) == len(before[1]) == 2


async def test_what_one_opening_writes_the_other_reads_at_once(durable_settings: SkeinoSettings) -> None:
    async with open_persistence(durable_settings) as one, open_persistence(durable_settings) as other:
        run_id = await started(one.metadata_store, "t")
        assert await everything(other.metadata_store) == await everything(one.metadata_store)
        assert await other.metadata_store.finish_run(ending(run_id))
        assert not await one.metadata_store.finish_run(ending(run_id, status="error"))
        assert await everything(other.metadata_store) == await everything(one.metadata_store)


async def test_a_run_that_was_active_is_still_its_worker_s(durable_settings: SkeinoSettings) -> None:
    async with open_persistence(durable_settings) as opened:
        run_id = await started(opened.metadata_store, "t")
    async with open_persistence(durable_settings) as opened:
        assert [row["status"] for row in await opened.metadata_store.search_threads()] == ["busy"]
        assert not await opened.metadata_store.finish_run(ending(run_id, worker_id="other"))
        assert await opened.metadata_store.finish_run(ending(run_id))
