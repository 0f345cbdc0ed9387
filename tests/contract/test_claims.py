"""Claims, on every backend; and what a worker's death does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, Persistence, open_persistence
from skeino.persistence.claims import ClaimingStore, Queue, ThreadClaims
from skeino.runs import Run
from skeino.testing import ClaimContract, started, the_run
from skeino.testing.claims import claiming, taken
from skeino.testing.leases import keeping


class TestClaims(ClaimContract):
    """See `skeino.testing`."""


@pytest.fixture
async def durable_store(durable_settings: SkeinoSettings) -> AsyncIterator[MetadataStoreProtocol]:
    async with open_persistence(durable_settings) as persistence:
        yield persistence.metadata_store


class Slow:
    """The store; a claim is answered a moment after it was taken."""

    def __init__(self, store: MetadataStoreProtocol) -> None:
        self._store = claiming(store)
        self.claims: list[int | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        self.claims.append(await self._store.claim_thread(run_id, thread_id, owner=owner))
        await asyncio.sleep(0.05)
        return self.claims[-1]


async def test_a_run_whose_claim_was_cancelled_has_not_lost_the_thread_to_another(
    durable_store: MetadataStoreProtocol,
) -> None:
    slow = Slow(durable_store)
    claims = ThreadClaims(cast("ClaimingStore", slow), no_roll_back, patience=5.0, limit=10)
    run = Run("t")
    await durable_store.start_run(run.run_id, worker_id=ALIVE, thread_id="t")
    await claims.claim(run, "t")
    await asyncio.wait(claims.release(run))
    going_on = asyncio.create_task(claims.claim(run, "t", goes_on=True))
    while len(slow.claims) < 2:
        await asyncio.sleep(0.001)
    going_on.cancel()
    with pytest.raises(asyncio.CancelledError):
        await going_on
    await claims.claim(run, "t", goes_on=True)
    assert slow.claims[1] == run.fence_of("t")
    await asyncio.wait(claims.release(run))


async def no_roll_back(run_ids: Sequence[str]) -> None:
    raise AssertionError(run_ids)


DEAD, ALIVE = "worker-dead", "worker-alive"


async def fence_now(store: MetadataStoreProtocol, thread_id: str = "t") -> int:
    """The thread's fence."""
    queue = await claiming(store).get_queue(thread_id)
    assert queue is not None
    fence = await claiming(store).change_queue(thread_id, queue.run_ids, queue.run_ids, takes=False)
    assert fence is not None
    return fence


async def test_the_dead_holders_fence_is_not_its_threads_any_more(durable_store: MetadataStoreProtocol) -> None:
    dead = await started(durable_store, worker_id=DEAD)
    fence = await taken(durable_store, dead)
    async with keeping(durable_store) as keeper:
        await keeper.lose(DEAD)
        assert await keeper(keeper.leases.end_runs_of_lost, 10) == 1
    assert await fence_now(durable_store) == fence + 1
    assert await claiming(durable_store).get_queue("t") == Queue((dead,), frozenset())


async def test_nor_is_the_one_it_had_when_it_let_the_thread_go(durable_store: MetadataStoreProtocol) -> None:
    dead = await started(durable_store, worker_id=DEAD)
    fence = await taken(durable_store, dead)
    await claiming(durable_store).release_thread(dead, "t")
    async with keeping(durable_store) as keeper:
        await keeper.lose(DEAD)
        assert await keeper(keeper.leases.end_runs_of_lost, 10) == 1
    assert await fence_now(durable_store) == fence + 1


async def test_a_living_holder_keeps_its_fence_when_another_of_its_thread_dies(
    durable_store: MetadataStoreProtocol,
) -> None:
    alive, dead = await started(durable_store, "t", worker_id=ALIVE), await started(durable_store, "t", worker_id=DEAD)
    fence = await taken(durable_store, alive)
    await claiming(durable_store).change_queue("t", [alive], [alive, dead], takes=False)
    async with keeping(durable_store) as keeper:
        await keeper.lose(DEAD)
        assert await keeper(keeper.leases.end_runs_of_lost, 10) == 1
    assert (await the_run(durable_store, dead))["status"] == "error"
    assert await fence_now(durable_store) == fence
    assert await claiming(durable_store).get_queue("t") == Queue((alive, dead), frozenset({alive}))


async def test_runs_that_nobody_knows_are_fenced_off_as_well(durable_store: MetadataStoreProtocol) -> None:
    unknown = await started(durable_store, worker_id=ALIVE)
    fence = await taken(durable_store, unknown)
    async with keeping(durable_store) as keeper:
        assert await keeper(keeper.leases.end_runs, ALIVE, [unknown]) == 1
    assert await fence_now(durable_store) == fence + 1


async def test_claims_and_releases_of_many_runs_at_once(persistence: Persistence) -> None:
    """Each thread's runs take it one after the other, whatever they share their batches with."""
    store = persistence.metadata_store
    holders: dict[str, list[int]] = {f"t{number}": [] for number in range(5)}

    async def live(thread_id: str) -> None:
        run_id = await started(store, thread_id)
        while (fence := await claiming(store).claim_thread(run_id, thread_id, owner=None)) is None:
            await asyncio.sleep(0.002)
        holders[thread_id].append(fence)
        await claiming(store).release_thread(run_id, thread_id)

    async with asyncio.timeout(60):
        await asyncio.gather(*(live(thread_id) for thread_id in holders for _ in range(6)))
    for fences in holders.values():
        assert fences == list(range(fences[0], fences[0] + 6))
