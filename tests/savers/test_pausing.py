"""A graph that waits for a human: what the ledger says, and how the run leaves its thread."""

import asyncio
from typing import Any

from langgraph.types import Command

from skeino.runs import Run
from skeino.testing import the_run, the_thread
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, asking, nested, said


async def ends_as(tracker: RunTracker, run_id: str) -> tuple[str, bool, str]:
    """The run's status, whether it is marked as paused, and its thread's status."""
    row = await the_run(tracker.metadata_store, run_id)
    assert row["thread_id"] is not None
    return row["status"], row["paused"], (await the_thread(tracker.metadata_store, row["thread_id"]))["status"]


def is_paused(run: Run) -> bool:
    return run.ledger.paused


async def test_a_pause_leaves_the_thread_interrupted_until_a_later_run_resumes_it(
    tracker: RunTracker, saver: Saver
) -> None:
    graph = asking(saver)
    async with tracker.run(thread_id="t") as first:
        state = await graph.ainvoke(said("hello"), first.config)
        assert len(state["__interrupt__"]) == 1
        assert is_paused(first)
    assert await ends_as(tracker, first.run_id) == ("success", True, "interrupted")
    async with tracker.run(thread_id="t") as second:
        assert not is_paused(second)
        state = await graph.ainvoke(Command(resume="go on"), second.config)
        assert not is_paused(second)
    assert state["messages"][1] == "told go on"
    assert await ends_as(tracker, second.run_id) == ("success", False, "idle")
    assert (await the_run(tracker.metadata_store, first.run_id))["paused"] is True


async def test_a_pause_resumed_in_the_same_run_is_none(tracker: RunTracker, saver: Saver) -> None:
    graph = asking(saver)
    async with tracker.run(thread_id="t") as run:
        await graph.ainvoke(said("hello"), run.config)
        assert is_paused(run)
        await graph.ainvoke(Command(resume="go on"), run.config)
        assert not is_paused(run)
    assert await ends_as(tracker, run.run_id) == ("success", False, "idle")


async def test_one_answer_of_two_leaves_the_graph_paused(tracker: RunTracker, saver: Saver) -> None:
    graph = asking(saver, questions=2)
    async with tracker.run(thread_id="t") as first:
        state = await graph.ainvoke(said("hello"), first.config)
        one, other = state["__interrupt__"]
    assert await ends_as(tracker, first.run_id) == ("success", True, "interrupted")
    async with tracker.run(thread_id="t") as second:
        state = await graph.ainvoke(Command(resume={one.id: "first"}), second.config)
        assert len(state["__interrupt__"]) == 1
    assert await ends_as(tracker, second.run_id) == ("success", True, "interrupted")
    async with tracker.run(thread_id="t") as third:
        state = await graph.ainvoke(Command(resume={other.id: "second"}), third.config)
        assert "__interrupt__" not in state
    assert await ends_as(tracker, third.run_id) == ("success", False, "idle")


async def test_both_answers_in_one_run_end_the_pause(tracker: RunTracker, saver: Saver) -> None:
    graph = asking(saver, questions=2)
    async with tracker.run(thread_id="t") as run:
        state = await graph.ainvoke(said("hello"), run.config)
        answers = {one.id: str(number) for number, one in enumerate(state["__interrupt__"])}
        assert len(answers) == 2
        await graph.ainvoke(Command(resume=answers), run.config)
        assert not is_paused(run)
    assert await ends_as(tracker, run.run_id) == ("success", False, "idle")


async def test_a_subgraph_s_pause_is_its_root_s(tracker: RunTracker, saver: Saver) -> None:
    graph = nested(saver, pausing=True)
    async with tracker.run(thread_id="t") as first:
        state = await graph.ainvoke(said("hello"), first.config)
        assert state["__interrupt__"]
    assert await ends_as(tracker, first.run_id) == ("success", True, "interrupted")
    async with tracker.run(thread_id="t") as second:
        await graph.ainvoke(Command(resume="go on"), second.config)
    assert await ends_as(tracker, second.run_id) == ("success", False, "idle")


async def test_a_subgraph_s_pause_resumed_in_the_same_run_is_none(tracker: RunTracker, saver: Saver) -> None:
    graph = nested(saver, pausing=True)
    async with tracker.run(thread_id="t") as run:
        await graph.ainvoke(said("hello"), run.config)
        assert is_paused(run)
        await graph.ainvoke(Command(resume="go on"), run.config)
    assert await ends_as(tracker, run.run_id) == ("success", False, "idle")


async def test_a_pause_shows_with_every_durability(tracker: RunTracker, saver: Saver) -> None:
    graph = asking(saver)
    modes: list[Any] = ["sync", "async", "exit"]
    for durability in modes:
        async with tracker.run(thread_id=durability) as run:
            await graph.ainvoke(said("hello"), run.config, durability=durability)
        assert await ends_as(tracker, run.run_id) == ("success", True, "interrupted"), durability
        async with tracker.run(thread_id=durability) as run:
            await graph.ainvoke(Command(resume="go on"), run.config, durability=durability)
        assert await ends_as(tracker, run.run_id) == ("success", False, "idle"), durability


async def test_a_synchronous_graph_s_pause_shows_too(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run(thread_id="t") as run:
        state = await asyncio.to_thread(asking(saver).invoke, said("hello"), run.config)
        assert state["__interrupt__"]
    assert await ends_as(tracker, run.run_id) == ("success", True, "interrupted")


async def test_a_run_that_only_reads_leaves_a_paused_thread_paused(tracker: RunTracker, saver: Saver) -> None:
    graph = asking(saver)
    async with tracker.run(thread_id="t") as run:
        await graph.ainvoke(said("hello"), run.config)
    async with tracker.run(thread_id="t") as reading:
        assert (await graph.aget_state(reading.config)).next == ("ask0",)
    assert await ends_as(tracker, reading.run_id) == ("success", False, "interrupted")


async def test_a_pause_on_one_thread_is_not_ended_by_another(tracker: RunTracker, saver: Saver) -> None:
    graph = asking(saver)
    async with tracker.run(thread_id="t") as run:
        await graph.ainvoke(said("hello"), run.config)
        other = {"configurable": {"thread_id": "other"}}
        await graph.ainvoke(said("hello"), other)
        await graph.ainvoke(Command(resume="go on"), other)
        assert is_paused(run)
    assert await ends_as(tracker, run.run_id) == ("success", True, "interrupted")
