"""The stamp: on every checkpoint a run writes, the run's own, and without an effect on what the graph computes."""

import asyncio
import warnings
from typing import Any

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from skeino.errors import ResumeTrapWarning
from skeino.runs import Run, current_run_var
from skeino.testing import the_run
from skeino_asgi import RunTracker
from tests.savers.graphs import GRAPHS, Saver, checkpoints, config_of, nested, plain, said, stamps, synchronous

SPOOF = "SPOOF"


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
@pytest.mark.parametrize("name", GRAPHS)
async def test_every_checkpoint_carries_its_run(tracker: RunTracker, saver: Saver, name: str, durability: Any) -> None:
    graph = GRAPHS[name](saver)
    async with tracker.run(thread_id="t") as run:
        state = await graph.ainvoke(said("hello"), run.config, durability=durability)
    found = await checkpoints(saver, "t")
    assert stamps(found) == [run.run_id] * len(found)
    assert run.ledger.checkpoint_count == len(found) > 0
    assert state["messages"][0] == "hello"
    answers = [message for message in state["messages"] if " in " in message]
    assert answers
    assert all(message.endswith(f"in {run.run_id}") for message in answers), "a node did not see its run"
    namespaces = {one.config["configurable"]["checkpoint_ns"] for one in found}
    assert (len(namespaces) > 1) is (name == "nested")


async def test_the_ledger_tells_what_was_written(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run(thread_id="t") as run:
        await nested(saver).ainvoke(said("hello"), run.config)
    found = await checkpoints(saver, "t")
    root = sorted(one.checkpoint["id"] for one in found if one.config["configurable"]["checkpoint_ns"] == "")
    row = await the_run(tracker.metadata_store, run.run_id)
    assert row["checkpoint_count"] == len(found) > len(root)
    assert (row["first_checkpoint_id"], row["last_checkpoint_id"]) == (root[0], root[-1])
    latest = await saver.aget_tuple(config_of("t"))
    assert latest is not None
    assert latest.checkpoint["id"] == row["last_checkpoint_id"]


async def test_two_calls_in_one_run_keep_both_inputs(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    async with tracker.run(thread_id="t") as run:
        await graph.ainvoke(said("one"), run.config)
        state = await graph.ainvoke(said("two"), run.config)
    assert [message.split(" in ")[0] for message in state["messages"]] == [
        "one",
        "answer to one",
        "two",
        "answer to two",
    ]
    assert set(stamps(await checkpoints(saver, "t"))) == {run.run_id}
    assert run.ledger.checkpoint_count == len(await checkpoints(saver, "t"))


async def test_a_thread_s_history_reads_as_a_list_of_runs(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    runs = []
    for number in range(3):
        async with tracker.run(thread_id="t") as run:
            await graph.ainvoke(said(str(number)), run.config)
        runs.append(run)
    await graph.ainvoke(said("without a run"), config_of("t"))
    found = await checkpoints(saver, "t")
    assert list(dict.fromkeys(stamps(found))) == [None, *(run.run_id for run in reversed(runs))]
    for run in runs:
        mine = [one async for one in saver.alist(config_of("t"), filter={"run_id": run.run_id})]
        assert len(mine) == run.ledger.checkpoint_count == 3
        assert mine[0].checkpoint["id"] == run.ledger.last_checkpoint_id
        assert mine[-1].checkpoint["id"] == run.ledger.first_checkpoint_id


async def test_streaming_and_updating_are_stamped(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    async with tracker.run(thread_id="t") as streaming:
        assert [chunk async for chunk in graph.astream(said("hello"), streaming.config)]
    async with tracker.run(thread_id="t") as updating:
        await graph.aupdate_state(updating.config, said("by hand"))
    found = stamps(await checkpoints(saver, "t"))
    assert found == [updating.run_id, *[streaming.run_id] * (len(found) - 1)]
    assert (updating.ledger.checkpoint_count, streaming.ledger.checkpoint_count) == (1, len(found) - 1)


async def test_a_caller_cannot_forge_the_stamp(tracker: RunTracker, saver: Saver) -> None:
    for place in ("metadata", "configurable", "run_id"):
        async with tracker.run(thread_id=place) as run:
            config: Any = dict(run.config)
            if place == "run_id":
                config["run_id"] = "0199d0c7-0000-7000-8000-000000000000"
            else:
                config[place] = {**config.get(place, {}), "run_id": SPOOF}
            await nested(saver).ainvoke(said("hello"), config)
            await plain(saver).aupdate_state(config, said("by hand"))
        found = await checkpoints(saver, place)
        assert stamps(found) == [run.run_id] * len(found)


async def test_a_run_named_in_the_metadata_argument_is_kept(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run(thread_id="t") as run:
        restored, fresh = empty_checkpoint(), empty_checkpoint()
        await saver.aput(config_of("t", checkpoint_ns=""), restored, {"source": "fork", "run_id": "old"}, {})
        metadata: Any = {"source": "input", "step": -1}
        await saver.aput(config_of("t", checkpoint_ns=""), fresh, metadata, {})
        assert metadata == {"source": "input", "step": -1}, "the caller's own mapping was changed"
    assert sorted(stamps(await checkpoints(saver, "t"))) == sorted(["old", run.run_id])


@pytest.mark.parametrize("place", ["metadata", "configurable"])
async def test_the_run_s_own_id_in_a_config_warns(tracker: RunTracker, saver: Saver, place: str) -> None:
    async with tracker.run(thread_id="t") as run:
        config: Any = dict(run.config)
        config[place] = {**config.get(place, {}), "run_id": run.run_id}
        with pytest.warns(ResumeTrapWarning, match="drops the input"):
            await plain(saver).ainvoke(said("one"), config)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            await plain(saver).ainvoke(said("two"), run.config)


async def test_a_run_s_config_never_carries_its_id(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run() as run:
        config = run.config
        assert config == {"configurable": {"thread_id": run.thread_id}}
        await plain(saver).ainvoke(said("hello"), config)
    assert run.thread_id is not None
    row = await the_run(tracker.metadata_store, run.run_id)
    assert row["thread_id"] == run.thread_id
    assert stamps(await checkpoints(saver, run.thread_id)) == [run.run_id] * 3


async def test_a_run_learns_its_thread_from_the_first_write(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run() as run:
        await plain(saver).ainvoke(said("hello"), config_of("learnt"))
        await plain(saver).ainvoke(said("hello"), config_of("another"))
        assert run.thread_id == "learnt"
    assert (await the_run(tracker.metadata_store, run.run_id))["thread_id"] == "learnt"
    threads = {row["thread_id"]: row["status"] for row in await tracker.metadata_store.search_threads()}
    assert threads == {"learnt": "idle", "another": "idle"}
    assert set(stamps(await checkpoints(saver, "another"))) == {run.run_id}


@pytest.mark.parametrize("make", [plain, synchronous, nested])
async def test_a_synchronous_graph_in_a_thread_is_stamped_once(tracker: RunTracker, saver: Saver, make: Any) -> None:
    nodes_are_synchronous = make is synchronous
    async with tracker.run(thread_id="t") as run:
        if nodes_are_synchronous:
            state = await asyncio.to_thread(make(saver).invoke, said("hello"), run.config)
            assert state["messages"] == ["hello", f"sync answer in {run.run_id}"]
        else:
            await asyncio.to_thread(make(saver).update_state, run.config, said("by hand"))
            history = await asyncio.to_thread(lambda: list(make(saver).get_state_history(run.config)))
            assert history
    found = await checkpoints(saver, "t")
    assert stamps(found) == [run.run_id] * len(found)
    assert run.ledger.checkpoint_count == len(found) > 0


async def test_a_synchronous_graph_teaches_a_run_its_thread(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run(owner="ann") as run:
        await asyncio.to_thread(synchronous(saver).invoke, said("hello"), config_of("learnt"))
    row = await the_run(tracker.metadata_store, run.run_id)
    assert (row["thread_id"], row["checkpoint_count"]) == ("learnt", 3)


async def test_a_task_that_outlives_its_run_is_still_stamped(tracker: RunTracker, saver: Saver) -> None:
    graph, ended = plain(saver), asyncio.Event()

    async def later() -> None:
        await ended.wait()
        await graph.ainvoke(said("late"), config_of("t"))

    async with tracker.run(thread_id="t") as run:
        task = asyncio.create_task(later())
        await asyncio.sleep(0)
    row = await the_run(tracker.metadata_store, run.run_id)
    assert row["status"] == "success"
    ended.set()
    await task
    assert not run.active
    assert stamps(await checkpoints(saver, "t")) == [run.run_id] * 3
    assert await the_run(tracker.metadata_store, run.run_id) == row, "a row changed after its run's end"


async def test_a_hundred_runs_at_once_never_mix(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)

    async def one(number: int) -> Run:
        async with tracker.run(thread_id=f"t{number}") as run:
            state = await graph.ainvoke(said(str(number)), run.config)
        assert state["messages"] == [str(number), f"answer to {number} in {run.run_id}"]
        return run

    runs = await asyncio.gather(*(one(number) for number in range(100)))
    for number, run in enumerate(runs):
        assert stamps(await checkpoints(saver, f"t{number}")) == [run.run_id] * 3
        assert run.ledger.checkpoint_count == 3


async def test_runs_in_runs_stamp_their_own(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    async with tracker.run(thread_id="outer") as outer:
        async with tracker.run(thread_id="inner") as inner:
            await graph.ainvoke(said("hello"), inner.config)
        await graph.ainvoke(said("hello"), outer.config)
    assert current_run_var.get() is None
    assert set(stamps(await checkpoints(saver, "inner"))) == {inner.run_id}
    assert set(stamps(await checkpoints(saver, "outer"))) == {outer.run_id}


async def test_without_a_run_nothing_is_stamped(tracker: RunTracker, saver: Saver) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    found = await checkpoints(saver, "t")
    assert stamps(found) == [None] * 3
    assert all("run_id" not in one.metadata for one in found)
    assert await tracker.metadata_store.search_threads() == []
