"""Leases: which workers live, and the runs of those that do not."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pytest

from skeino.persistence import MetadataStoreProtocol
from skeino.persistence.leases import END_UNKNOWN, WORKER_LOST, Leases, LeasingStore
from skeino.runs import new_id
from skeino.testing.making import WORKER, at, ending, everything, finished, started, the_run, the_thread

T = TypeVar("T")

SHORT = 0.05
LONG = 60.0
STEADY = 1_000_000.0


class Keeper:
    """Leases in a thread of their own, as they are meant to be used."""

    def __init__(self, leases: Leases) -> None:
        self.leases = leases
        self._thread = ThreadPoolExecutor(1)

    async def __call__(self, operation: Callable[..., T], *arguments: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: operation(*arguments, **named))

    async def lose(self, worker_id: str) -> None:
        """Let this worker's lease be declared lost."""
        await self(self.leases.acquire, worker_id, SHORT)
        await asyncio.sleep(2 * SHORT)
        assert await self(self.leases.declare_lost, STEADY) == [worker_id]

    async def close(self) -> None:
        await self(self.leases.close)
        self._thread.shutdown()


@asynccontextmanager
async def keeping(store: MetadataStoreProtocol) -> AsyncIterator[Keeper]:
    """Leases of the store, open."""
    assert isinstance(store, LeasingStore), "it has no open_leases, so it keeps no leases"
    keeper = Keeper(store.open_leases(10.0))
    try:
        yield keeper
    finally:
        await keeper.close()


@pytest.mark.asyncio
class LeaseContract:
    """What `Leases` promises, tested on the store of a fixture `store`, as `MetadataStoreContract` is.

    For stores that keep leases: `class TestMyStore(MetadataStoreContract, LeaseContract)`.
    """

    async def test_a_lease_is_good_for_its_time_from_now_on(self, store: MetadataStoreProtocol) -> None:
        async with keeping(store) as keeper:
            first = await keeper(keeper.leases.acquire, "w", LONG)
            assert first.tzinfo is not None
            assert abs(first - datetime.now(UTC) - timedelta(seconds=LONG)) < timedelta(seconds=30), "another clock"
            await asyncio.sleep(0.1)
            second = await keeper(keeper.leases.renew, "w", LONG)
            assert second is not None
            assert timedelta(seconds=0.05) < second - first < timedelta(seconds=10)
            assert await keeper(keeper.leases.declare_lost, STEADY) == []

    async def test_a_lease_that_has_run_out_is_renewed_while_nobody_has_declared_it_lost(
        self, store: MetadataStoreProtocol
    ) -> None:
        async with keeping(store) as keeper:
            await keeper(keeper.leases.acquire, "w", SHORT)
            await asyncio.sleep(2 * SHORT)
            assert await keeper(keeper.leases.renew, "w", LONG) is not None
            assert await keeper(keeper.leases.declare_lost, STEADY) == []

    async def test_a_lease_that_was_lost_stays_lost(self, store: MetadataStoreProtocol) -> None:
        async with keeping(store) as keeper:
            await keeper.lose("w")
            assert await keeper(keeper.leases.renew, "w", LONG) is None
            assert await keeper(keeper.leases.declare_lost, STEADY) == [], "it is declared once"
            await keeper(keeper.leases.release, "w")
            assert await keeper(keeper.leases.renew, "w", LONG) is None

    async def test_a_lease_that_was_never_acquired_is_not_renewed(self, store: MetadataStoreProtocol) -> None:
        async with keeping(store) as keeper:
            assert await keeper(keeper.leases.renew, "w", LONG) is None
            assert await keeper(keeper.leases.renew, "w", LONG) is None

    async def test_nobody_declares_a_lease_lost_who_was_not_steady_for_longer(
        self, store: MetadataStoreProtocol
    ) -> None:
        async with keeping(store) as keeper:
            await keeper(keeper.leases.acquire, "long", 0.6)
            await keeper(keeper.leases.acquire, "short", 0.2)
            await asyncio.sleep(0.8)
            assert await keeper(keeper.leases.declare_lost, 0.0) == []
            assert await keeper(keeper.leases.declare_lost, 0.29) == []
            assert await keeper(keeper.leases.declare_lost, 0.31) == ["short"]
            assert await keeper(keeper.leases.declare_lost, 0.89) == []
            assert await keeper(keeper.leases.declare_lost, 0.91) == ["long"]

    async def test_the_runs_of_a_lost_worker_end_as_errors_and_their_threads_with_them(
        self, store: MetadataStoreProtocol
    ) -> None:
        mine = [await started(store, "a"), await started(store, "b", metadata={"kept": 1}), await started(store)]
        reading = await started(store, "c", create_thread=False)
        ended = await finished(store, "d")
        others = await started(store, "e", worker_id="other")
        untouched = [await the_run(store, ended), await the_run(store, others)]
        before = [await the_run(store, run_id) for run_id in [*mine, reading]]
        async with keeping(store) as keeper:
            await keeper(keeper.leases.acquire, "other", LONG)
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 0
            await keeper.lose(WORKER)
            since = datetime.now(UTC)
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 4
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 0
        for row in before:
            after = await the_run(store, row["run_id"])
            finished_at = after["finished_at"]
            assert finished_at is not None
            assert finished_at.tzinfo == UTC
            assert abs(finished_at - since) < timedelta(seconds=30)
            assert after == {**row, "status": "error", "error": WORKER_LOST, "finished_at": finished_at}
        assert [await the_run(store, ended), await the_run(store, others)] == untouched
        statuses = {row["thread_id"]: row["status"] for row in await store.search_threads()}
        assert statuses == {"a": "error", "b": "error", "d": "idle", "e": "busy"}
        thread = await the_thread(store, "a")
        assert abs(thread["updated_at"] - since) < timedelta(seconds=30)
        assert thread["updated_at"] > thread["created_at"]

    async def test_the_runs_of_a_worker_without_a_lease_are_left_alone(self, store: MetadataStoreProtocol) -> None:
        await started(store, "t", worker_id="a script")
        before = await everything(store)
        async with keeping(store) as keeper:
            await keeper.lose("w")
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 0
        assert await everything(store) == before

    async def test_the_runs_of_the_lost_end_in_batches(self, store: MetadataStoreProtocol) -> None:
        runs = [await started(store, f"t{number % 3}") for number in range(7)]
        async with keeping(store) as keeper:
            await keeper.lose(WORKER)
            assert [await keeper(keeper.leases.end_runs_of_lost, 3) for _ in range(4)] == [3, 3, 1, 0]
        assert {(await the_run(store, run_id))["status"] for run_id in runs} == {"error"}

    async def test_a_run_that_starts_after_its_worker_was_lost_ends_too(self, store: MetadataStoreProtocol) -> None:
        async with keeping(store) as keeper:
            await keeper.lose(WORKER)
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 0
            run_id = await started(store, "t")
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 1
        assert (await the_run(store, run_id))["status"] == "error"

    async def test_a_thread_on_which_another_worker_s_run_is_active_stays_busy(
        self, store: MetadataStoreProtocol
    ) -> None:
        await started(store, "t")
        other = await started(store, "t", worker_id="other")
        async with keeping(store) as keeper:
            await keeper.lose(WORKER)
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 1
        assert (await the_thread(store, "t"))["status"] == "busy"
        assert await store.finish_run(ending(other, worker_id="other"))
        assert (await the_thread(store, "t"))["status"] == "idle"

    async def test_an_end_that_comes_after_its_worker_was_lost_is_kept_aside(
        self, store: MetadataStoreProtocol
    ) -> None:
        run_id = await started(store, "t")
        async with keeping(store) as keeper:
            await keeper.lose(WORKER)
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 1
        before, thread = await the_run(store, run_id), await the_thread(store, "t")
        late = ending(run_id, metadata={"a": [1]}, checkpoint_count=3, last_checkpoint_id="c3", finished_at=at(7))
        assert await store.finish_run(late) is False
        after = await the_run(store, run_id)
        kept = after["late_outcome"]
        assert kept is not None
        assert {**after, "late_outcome": None} == before
        assert (kept["status"], kept["metadata"], kept["checkpoint_count"]) == ("success", {"a": [1]}, 3)
        assert datetime.fromisoformat(kept["finished_at"]) == at(7)
        assert await the_thread(store, "t") == thread

    async def test_a_lease_that_is_given_back_is_gone(self, store: MetadataStoreProtocol) -> None:
        await finished(store, "t")
        async with keeping(store) as keeper:
            await keeper(keeper.leases.acquire, WORKER, SHORT)
            await keeper(keeper.leases.release, WORKER)
            await asyncio.sleep(2 * SHORT)
            assert await keeper(keeper.leases.declare_lost, STEADY) == []
            assert await keeper(keeper.leases.renew, WORKER, LONG) is None

    async def test_a_lease_that_is_given_back_with_active_runs_runs_out_at_once(
        self, store: MetadataStoreProtocol
    ) -> None:
        run_id = await started(store, "t")
        async with keeping(store) as keeper:
            await keeper(keeper.leases.acquire, WORKER, LONG)
            await keeper(keeper.leases.release, WORKER)
            await asyncio.sleep(SHORT)
            assert await keeper(keeper.leases.declare_lost, STEADY) == [WORKER]
            assert await keeper(keeper.leases.end_runs_of_lost, 100) == 1
        assert (await the_run(store, run_id))["error"] == WORKER_LOST

    async def test_a_worker_s_active_runs_are_found_once_they_are_old_enough(
        self, store: MetadataStoreProtocol
    ) -> None:
        now = datetime.now(UTC)
        old = {await started(store, None, created_at=now - timedelta(seconds=100)) for _ in range(3)}
        await started(store, "t", created_at=now)
        await started(store, "t", created_at=now - timedelta(seconds=100), worker_id="other")
        await finished(store, "t", start={"created_at": now - timedelta(seconds=100)})
        async with keeping(store) as keeper:
            found = await keeper(keeper.leases.active_runs, WORKER, older_than=50, limit=10)
            assert (len(found), set(found)) == (3, old)
            assert len(await keeper(keeper.leases.active_runs, WORKER, older_than=50, limit=2)) == 2
            assert await keeper(keeper.leases.active_runs, WORKER, older_than=150, limit=10) == []
            assert await keeper(keeper.leases.active_runs, "nobody", older_than=0, limit=10) == []

    async def test_runs_of_which_their_worker_knows_nothing_end_as_errors(self, store: MetadataStoreProtocol) -> None:
        lost, kept = await started(store, "t"), await started(store, "kept")
        ended, others = await finished(store, "t"), await started(store, "t2", worker_id="other")
        untouched = [await the_run(store, run_id) for run_id in (kept, ended, others)]
        async with keeping(store) as keeper:
            assert await keeper(keeper.leases.end_runs, WORKER, [lost, ended, others, new_id()]) == 1
            assert await keeper(keeper.leases.end_runs, WORKER, [lost]) == 0
            assert await keeper(keeper.leases.end_runs, WORKER, []) == 0
        row = await the_run(store, lost)
        assert (row["status"], row["error"]) == ("error", END_UNKNOWN)
        assert (await the_thread(store, "t"))["status"] == "error"
        assert [await the_run(store, run_id) for run_id in (kept, ended, others)] == untouched

    async def test_several_sweep_at_once_and_each_run_ends_once(self, store: MetadataStoreProtocol) -> None:
        runs = [await started(store, f"t{number}") for number in range(60)]
        async with keeping(store) as one, keeping(store) as two, keeping(store) as three:
            await one.lose(WORKER)
            keepers = (one, two, three)
            numbers = [0]
            deadline = time.monotonic() + 20
            while sum(numbers) < len(runs) and time.monotonic() < deadline:
                numbers += await asyncio.gather(*(keeper(keeper.leases.end_runs_of_lost, 7) for keeper in keepers))
            assert sum(numbers) == len(runs)
        assert {(await the_run(store, run_id))["status"] for run_id in runs} == {"error"}
        assert {row["status"] for row in await store.search_threads()} == {"error"}

    async def test_leases_are_declared_lost_once_however_many_look(self, store: MetadataStoreProtocol) -> None:
        async with keeping(store) as one, keeping(store) as two, keeping(store) as three:
            workers = [f"w{number}" for number in range(20)]
            for worker_id in workers:
                await one(one.leases.acquire, worker_id, SHORT)
            await asyncio.sleep(2 * SHORT)
            keepers = (one, two, three)
            found = await asyncio.gather(*(keeper(keeper.leases.declare_lost, STEADY) for keeper in keepers))
            found.append(await one(one.leases.declare_lost, STEADY))
            assert sorted(worker_id for some in found for worker_id in some) == sorted(workers)
