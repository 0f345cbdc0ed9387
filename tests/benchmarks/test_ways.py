"""The ways that are compared do the same: what they have written for a run reads alike."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks import rows, runs, savers
from benchmarks.servers import Place
from skeino.persistence import RunRow, ThreadRow, open_persistence
from tests.servers import postgres


@pytest.fixture(params=["sqlite", "postgres", "mongodb"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Place, list[str]]:
    """A place, and the URIs of the databases made in it."""
    pgbench: Path | None = None
    if request.param == "sqlite":
        make: Callable[[], str] = lambda: str(tmp_path / f"{len(made)}.db")  # noqa: E731
    else:
        make = request.getfixturevalue(f"{request.param}_server").create_database
        if request.param == "postgres" and (binaries := postgres.find_postgres().binaries):
            pgbench = binaries / "pgbench"
    made: list[str] = []

    def empty() -> str:
        made.append(make())
        return made[-1]

    return Place(request.param, "", empty, pgbench), made


def what_it_is(run: RunRow, thread: ThreadRow) -> dict[str, object]:
    """What must be alike; how long a run took is not."""
    return {
        "worker_id": run["worker_id"],
        "status": run["status"],
        "kwargs": run["kwargs"],
        "metadata": run["metadata"],
        "http_status": run["http_status"],
        "checkpoint_count": run["checkpoint_count"],
        "ended": run["finished_at"] is not None and run["finished_at"] >= run["created_at"],
        "thread": (run["thread_id"] == thread["thread_id"], thread["status"], thread["metadata"], thread["config"]),
        "changed": thread["updated_at"] >= run["created_at"],
    }


async def test_all_ways_track_the_same_runs(place: tuple[Place, list[str]]) -> None:
    where, made = place
    async with AsyncExitStack() as stack:
        ways = {"skeino": await stack.enter_async_context(runs.skeinos(where))}
        ways |= await stack.enter_async_context(runs.PLAIN[where.scheme](where))
        assert len(made) == len(ways) >= 3
        turns = [await variant(4, 0.02) for variant in ways.values()]
    assert all(turn.per_second > 0 for turn in turns)

    found = []
    for uri in made:
        async with open_persistence(where.settings(uri)) as persistence:
            (run,) = await persistence.metadata_store.search_runs(limit=1)
            thread = await persistence.metadata_store.get_thread(str(run["thread_id"]))
            assert thread is not None
            assert await persistence.metadata_store.search_runs(status="running") == []
            assert len(await persistence.metadata_store.search_threads(status="idle")) >= 4
            found.append(what_it_is(run, thread))
    assert found == [found[0]] * len(ways)
    assert found[0]["worker_id"] == rows.WORKER


async def test_skeinos_saver_and_the_stock_one_hold_the_same(place: tuple[Place, list[str]]) -> None:
    where, _ = place
    async with savers.savers(where) as both:
        found = []
        for saver in both.values():
            await savers.ainvoke(saver)(1, 0.001)
            await savers.aput("x" * 10)(saver)(1, 0.001)
            put = await saver.aget_tuple({"configurable": {"thread_id": "aput-10-1", "checkpoint_ns": ""}})
            assert put is not None
            found.append(put.checkpoint["channel_values"])
            run = [one async for one in saver.alist({"configurable": {"thread_id": "ainvoke-1"}})]
            assert [one.checkpoint["channel_values"].get("words") for one in run][:1] == [["first", *["word"] * 3]]
            assert len(run) == 5
    assert found == [{"messages": [{"role": "user", "content": "x" * 10}]}] * 2
