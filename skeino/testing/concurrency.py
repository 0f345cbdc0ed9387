"""Many at once: each operation is whole, and nobody waits for ever."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from skeino.errors import ThreadBusyError, ThreadExistsError, ThreadNotFoundError
from skeino.persistence import MetadataStoreProtocol
from skeino.runs import new_id
from skeino.testing.making import WORKER, at, ending, everything, started, the_run, the_thread


class ConcurrencyContract:
    """Many at once: each operation is whole, and nobody waits for ever."""

    async def test_fifty_runs_start_on_one_new_thread(self, store: MetadataStoreProtocol) -> None:
        ids = await asyncio.gather(*(started(store, "t", owner="ann") for _ in range(50)))
        assert {row["run_id"] for row in await store.search_runs(thread_id="t")} == set(ids)
        assert len(await store.search_threads()) == 1
        assert all(await asyncio.gather(*(store.finish_run(ending(run_id)) for run_id in ids)))
        assert (await the_thread(store, "t"))["status"] == "idle"

    async def test_two_owners_start_on_one_new_thread_and_one_gets_it(self, store: MetadataStoreProtocol) -> None:
        results = await asyncio.gather(
            *(started(store, "t", owner=owner) for owner in ("ann", "bob") * 10), return_exceptions=True
        )
        owner = (await the_thread(store, "t"))["owner"]
        for number, result in enumerate(results):
            if ("ann", "bob")[number % 2] == owner:
                assert isinstance(result, str)
            else:
                assert isinstance(result, ThreadNotFoundError)
        assert {row["owner"] for row in await store.search_runs()} == {owner}

    async def test_one_start_repeated_at_once_is_one_run(self, store: MetadataStoreProtocol) -> None:
        run_id = new_id()
        await asyncio.gather(*(started(store, "t", run_id=run_id) for _ in range(20)))
        assert [row["run_id"] for row in await store.search_runs()] == [run_id]

    async def test_one_thread_is_made_once(self, store: MetadataStoreProtocol) -> None:
        results = await asyncio.gather(*(store.create_thread("t") for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(result, dict) for result in results) == 1
        assert sum(isinstance(result, ThreadExistsError) for result in results) == 19

    async def test_of_different_ends_exactly_one_is_the_run_s(self, store: MetadataStoreProtocol) -> None:
        for _ in range(10):
            run_id = await started(store, "t")
            statuses = ("success", "error", "timeout") * 3
            ends = [ending(run_id, status=status, finished_at=at(number)) for number, status in enumerate(statuses)]
            results = await asyncio.gather(*(store.finish_run(end) for end in ends))
            assert sum(results) == 1
            row, winner = await the_run(store, run_id), ends[results.index(True)]
            assert (row["status"], row["finished_at"]) == (winner["status"], winner["finished_at"])

    async def test_the_same_end_twice_at_once_is_true_twice(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t")
        assert await asyncio.gather(*(store.finish_run(ending(run_id)) for _ in range(10))) == [True] * 10

    async def test_two_ends_at_once_leave_their_thread_not_busy(self, store: MetadataStoreProtocol) -> None:
        for _ in range(20):
            first, second = await started(store, "t"), await started(store, "t")
            both = store.finish_run(ending(first)), store.finish_run(ending(second, thread_status="interrupted"))
            assert all(await asyncio.gather(*both))
            assert (await the_thread(store, "t"))["status"] in ("idle", "interrupted")

    async def test_starting_and_deleting_leave_no_orphan(self, store: MetadataStoreProtocol) -> None:
        async def start(number: int) -> None:
            run_id = await started(store, f"t{number % 3}")
            await store.attach_thread(await started(store), f"t{number % 3}", owner=None)
            await store.finish_run(ending(run_id))

        async def delete(number: int) -> None:
            with suppress(ThreadNotFoundError, ThreadBusyError):
                await store.delete_thread(f"t{number % 3}", force=number % 2 == 0)

        async with asyncio.timeout(60):
            for _ in range(5):
                await asyncio.gather(*(step(number) for number in range(12) for step in (start, delete)))
        threads, runs = await everything(store)
        assert {row["thread_id"] for row in runs} - {None} <= {row["thread_id"] for row in threads}

    async def test_a_deletion_and_an_end_at_once_settle_one_way_or_the_other(
        self, store: MetadataStoreProtocol
    ) -> None:
        for number in range(20):
            thread_id = f"t{number}"
            run_id = await started(store, thread_id)
            deleted, ended = await asyncio.gather(
                store.delete_thread(thread_id), store.finish_run(ending(run_id)), return_exceptions=True
            )
            assert ended in (True, False)
            if isinstance(deleted, ThreadBusyError):
                assert ended is True
                assert (await the_thread(store, thread_id))["status"] == "idle"
            else:
                assert deleted is None
                assert await store.get_thread(thread_id) is None
                assert await store.get_run(run_id) is None

    async def test_workers_are_interrupted_at_once_without_a_deadlock(self, store: MetadataStoreProtocol) -> None:
        error: Any = {"code": "x", "type": None, "message": "x"}
        for number in range(40):
            await started(store, f"t{number * 7 % 10}", worker_id=f"w{number % 4}")
        counts = await asyncio.gather(*(store.interrupt_runs(f"w{number % 4}", error) for number in range(8)))
        assert sum(counts) == 40
        assert {row["status"] for row in await store.search_threads()} == {"interrupted"}

    async def test_metadata_merged_at_once_is_all_there(self, store: MetadataStoreProtocol) -> None:
        run_id = await started(store, "t")
        await asyncio.gather(
            *(store.update_thread("t", metadata={f"k{number}": number}) for number in range(20)),
            *(store.update_run(run_id, metadata={f"k{number}": number}) for number in range(20)),
            store.finish_run(ending(run_id, metadata={"end": True})),
        )
        expected = {f"k{number}": number for number in range(20)}
        assert (await the_thread(store, "t"))["metadata"] == expected
        assert (await the_run(store, run_id))["metadata"] == {**expected, "end": True}

    async def test_cancelled_operations_are_done_wholly_or_not_at_all(self, store: MetadataStoreProtocol) -> None:
        ids = [new_id() for _ in range(40)]
        tasks = [asyncio.create_task(started(store, f"t-{run_id}", run_id=run_id)) for run_id in ids]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                await asyncio.sleep(0)
            if number % 2:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for run_id, result in zip(ids, results, strict=True):
            run = await store.get_run(run_id)
            assert (await store.get_thread(f"t-{run_id}") is None) is (run is None)
            assert run is not None or isinstance(result, asyncio.CancelledError)
        assert await store.interrupt_runs(WORKER, {"code": "x", "type": None, "message": "x"}) >= 20

    @pytest.mark.parametrize("owner", [None, "ann"])
    async def test_mixed_operations_at_once_all_succeed(self, store: MetadataStoreProtocol, owner: str | None) -> None:
        async def one(number: int) -> None:
            thread_id = f"t{number % 7}"
            run_id = await started(store, thread_id, owner=owner)
            await store.search_threads(status="busy", owner=owner)
            await store.update_thread(thread_id, metadata={"last": number}, owner=owner)
            assert await store.finish_run(ending(run_id, checkpoint_count=number))
            assert (await the_run(store, run_id))["checkpoint_count"] == number

        await asyncio.gather(*(one(number) for number in range(60)))
        assert {row["status"] for row in await store.search_threads()} == {"idle"}
