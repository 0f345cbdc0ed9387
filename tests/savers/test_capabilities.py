"""Deleting by run, copying and pruning: what LangGraph's suite does not ask."""

import asyncio
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.graph import START, StateGraph
from langgraph.types import Command

from skeino.errors import DeltaChannelError, InvalidInputError, ThreadExistsError, ThreadNotFoundError
from skeino.runs import new_id
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, State, answer, checkpoints, config_of, fanned_out, nested, plain, said, stamps


def extend(state: list[str], writes: list[list[str]]) -> list[str]:
    return [*state, *(one for write in writes for one in write)]


class Log(TypedDict, total=False):
    lines: Annotated[list[str], DeltaChannel(extend)]


def logging_graph(saver: Saver) -> Any:
    """Its channel is stored as what each step added, not as what it is."""
    graph = StateGraph(Log)
    graph.add_node("note", lambda state: {"lines": [f"{len(state['lines'])} before"]})
    graph.add_edge(START, "note")
    return graph.compile(checkpointer=saver)


def calling(saver: Saver) -> Any:
    """A subgraph that starts anew each time it is called."""
    inner = StateGraph(State)
    inner.add_node("answer", answer)
    inner.add_edge(START, "answer")
    graph = StateGraph(State)
    graph.add_node("inner", inner.compile())
    graph.add_edge(START, "inner")
    return graph.compile(checkpointer=saver)


async def turns(tracker: RunTracker, graph: Any, thread_id: str, number: int = 2) -> list[str]:
    """The ids of as many runs as were asked for, each of one message."""
    runs = []
    for turn in range(number):
        async with tracker.run(thread_id=thread_id) as run:
            await graph.ainvoke(said(f"message {turn}"), run.config)
        runs.append(run.run_id)
    return runs


async def everything(saver: Saver, thread_id: str) -> list[Any]:
    """All checkpoints of a thread, in all namespaces, as far as they do not name the thread itself."""
    found = sorted(
        [one async for one in saver.alist(config_of(thread_id))],
        key=lambda one: (one.config["configurable"]["checkpoint_ns"], one.checkpoint["id"]),
    )
    return [
        (
            one.config["configurable"]["checkpoint_ns"],
            one.checkpoint,
            one.metadata,
            one.parent_config and one.parent_config["configurable"]["checkpoint_id"],
            one.pending_writes,
        )
        for one in found
    ]


def namespaces(found: list[CheckpointTuple]) -> list[str]:
    return [one.config["configurable"]["checkpoint_ns"] for one in found]


# ── Deleting by run ──────────────────────────────────────────────────────────────────────────────────────


async def test_what_one_run_wrote_is_deleted_and_nothing_else(tracker: RunTracker, saver: Saver) -> None:
    graph = nested(saver)
    first, second = await turns(tracker, graph, "t")
    await turns(tracker, plain(saver), "other")
    others, before = await everything(saver, "other"), await checkpoints(saver, "t")
    await saver.adelete_for_runs([second])
    left = await checkpoints(saver, "t")
    assert set(stamps(left)) == {first}
    assert left == [one for one in before if one.metadata["run_id"] == first]
    assert await everything(saver, "other") == others


async def test_a_thread_goes_on_from_what_is_left(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    _, second = await turns(tracker, graph, "t")
    await saver.adelete_for_runs([second])
    async with tracker.run(thread_id="t") as run:
        result = await graph.ainvoke(said("once more"), run.config)
    assert [one for one in result["messages"] if not one.startswith("answer")] == ["message 0", "once more"]


async def test_a_checkpoint_whose_parent_is_deleted_has_none(tracker: RunTracker, saver: Saver) -> None:
    first, second = await turns(tracker, plain(saver), "t")
    values = (await plain(saver).aget_state(config_of("t"))).values
    await saver.adelete_for_runs([first])
    left = await checkpoints(saver, "t")
    assert set(stamps(left)) == {second}
    ids = {one.checkpoint["id"] for one in left}
    parents = {one.parent_config["configurable"]["checkpoint_id"] for one in left if one.parent_config}
    assert parents < ids
    assert (await plain(saver).aget_state(config_of("t"))).values == values


async def test_of_a_delta_channel_only_the_end_can_be_deleted(tracker: RunTracker, saver: Saver) -> None:
    graph = logging_graph(saver)
    runs = []
    for line in ("a", "b"):
        async with tracker.run(thread_id="t") as run:
            await graph.ainvoke({"lines": [line]}, run.config)
        runs.append(run.run_id)
    before = await everything(saver, "t")
    with pytest.raises(DeltaChannelError, match="nothing was deleted"):
        await saver.adelete_for_runs([runs[0]])
    assert await everything(saver, "t") == before
    await saver.adelete_for_runs([runs[1]])
    assert (await graph.aget_state(config_of("t"))).values == {"lines": ["a", "1 before"]}


@pytest.mark.parametrize("run_ids", ["one-string", ["\0"], [""], [3]])
async def test_a_list_of_runs_that_cannot_be_meant_is_refused(saver: Saver, run_ids: Any) -> None:
    with pytest.raises(InvalidInputError):
        await saver.adelete_for_runs(run_ids)


# ── Copying ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_copy_has_all_that_the_thread_has_each_run_s_id_too(tracker: RunTracker, saver: Saver) -> None:
    for graph in (nested(saver), fanned_out(saver)):
        await turns(tracker, graph, "t")
    async with tracker.run(thread_id="t") as run:  # which writes none of them
        await saver.acopy_thread("t", "copy")
    assert run.run_id not in stamps(await checkpoints(saver, "copy"))
    assert await everything(saver, "copy") == await everything(saver, "t") != []


async def test_copy_and_thread_go_their_own_ways(tracker: RunTracker, saver: Saver) -> None:
    graph = plain(saver)
    await turns(tracker, graph, "t", 1)
    await saver.acopy_thread("t", "copy")
    await turns(tracker, graph, "copy", 1)
    assert len((await graph.aget_state(config_of("copy"))).values["messages"]) == 4
    assert len((await graph.aget_state(config_of("t"))).values["messages"]) == 2
    await saver.adelete_thread("t")
    assert len((await graph.aget_state(config_of("copy"))).values["messages"]) == 4


async def test_a_paused_thread_is_resumed_on_its_copy(tracker: RunTracker, saver: Saver) -> None:
    graph = nested(saver, pausing=True)
    await turns(tracker, graph, "t", 1)
    await saver.acopy_thread("t", "copy")
    assert (await graph.aget_state(config_of("copy"))).interrupts
    async with tracker.run(thread_id="copy") as run:
        await graph.ainvoke(Command(resume="yes"), run.config)
    assert not (await graph.aget_state(config_of("copy"))).interrupts
    assert (await graph.aget_state(config_of("t"))).interrupts


async def test_a_delta_channel_is_copied_whole(tracker: RunTracker, saver: Saver) -> None:
    graph = logging_graph(saver)
    for line in ("a", "b"):
        await graph.ainvoke({"lines": [line]}, config_of("t"))
    await saver.acopy_thread("t", "copy")
    await graph.ainvoke({"lines": ["c"]}, config_of("copy"))
    lines = (await graph.aget_state(config_of("copy"))).values["lines"]
    assert lines == ["a", "1 before", "b", "3 before", "c", "5 before"]


async def test_nothing_is_copied_over_what_is_there(tracker: RunTracker, saver: Saver) -> None:
    await turns(tracker, plain(saver), "t")
    await turns(tracker, plain(saver), "taken", 1)
    before = await everything(saver, "taken")
    with pytest.raises(ThreadExistsError, match="taken"):
        await saver.acopy_thread("t", "taken")
    assert await everything(saver, "taken") == before
    with pytest.raises(InvalidInputError, match="onto itself"):
        await saver.acopy_thread("t", "t")


async def test_two_copies_onto_one_thread_are_not_mixed(saver: Saver) -> None:
    for number in range(4):
        await plain(saver).ainvoke(said(f"from {number}"), config_of(f"s{number}"))
    for turn in range(5):
        copies = (saver.acopy_thread(f"s{number}", f"copy{turn}") for number in range(4))
        outcomes = await asyncio.gather(*copies, return_exceptions=True)
        assert [type(one) for one in outcomes if one is not None] == [ThreadExistsError] * 3
        assert len(await checkpoints(saver, f"copy{turn}")) == 3


async def test_writes_that_lost_their_checkpoint_do_not_hinder_a_copy(saver: Saver) -> None:
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    (first, *_) = await checkpoints(saver, "t")
    lost = config_of("copy", checkpoint_ns="", checkpoint_id=first.checkpoint["id"])
    await saver.aput_writes(lost, [("messages", ["not the copy's"])], "task")
    await saver.acopy_thread("t", "copy")
    assert await everything(saver, "copy") == await everything(saver, "t")


async def test_the_target_of_a_copy_becomes_the_owner_s(tracker: RunTracker, saver: Saver) -> None:
    for owner in ("ann", "bob"):
        async with tracker.run(thread_id=f"{owner}s", owner=owner) as run:
            await plain(saver).ainvoke(said("secret"), run.config)
    async with tracker.run(owner="ann") as run:
        await saver.acopy_thread("anns", "copy")
        with pytest.raises(ThreadNotFoundError):
            await saver.acopy_thread("bobs", "stolen")
        with pytest.raises(ThreadNotFoundError):
            await saver.acopy_thread("anns", "bobs")
    assert run.thread_id == "copy"
    rows = await tracker.metadata_store.search_threads(owner="ann")
    assert {row["thread_id"] for row in rows} == {"anns", "copy"}
    assert await checkpoints(saver, "stolen") == []
    async with tracker.run(owner="bob"):
        with pytest.raises(ThreadNotFoundError):
            await checkpoints(saver, "copy")


# ── Pruning ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_pruning_keeps_the_state_and_what_comes_next(tracker: RunTracker, saver: Saver) -> None:
    graph = nested(saver)
    _, last = await turns(tracker, graph, "t")
    values = (await graph.aget_state(config_of("t"))).values
    await saver.aprune(["t"])
    left = await checkpoints(saver, "t")
    assert sorted(namespaces(left)) == ["", "inner"]
    assert set(stamps(left)) == {last}
    assert [one.parent_config for one in left] == [None, None]
    assert (await graph.aget_state(config_of("t"))).values == values
    async with tracker.run(thread_id="t") as run:
        result = await graph.ainvoke(said("once more"), run.config)
    assert result["messages"][: len(values["messages"])] == values["messages"]


async def test_a_subgraph_s_finished_call_goes_with_the_checkpoint_that_made_it(
    tracker: RunTracker, saver: Saver
) -> None:
    await turns(tracker, calling(saver), "t")
    assert any(namespace.startswith("inner:") for namespace in namespaces(await checkpoints(saver, "t")))
    await saver.aprune(["t"])
    assert namespaces(await checkpoints(saver, "t")) == [""]


async def test_a_pause_survives_pruning(tracker: RunTracker, saver: Saver) -> None:
    graph = nested(saver, pausing=True)
    await turns(tracker, graph, "t", 1)
    await saver.aprune(["t"])
    async with tracker.run(thread_id="t") as run:
        await graph.ainvoke(Command(resume="yes"), run.config)
    assert not (await graph.aget_state(config_of("t"))).interrupts


async def test_a_delta_channel_is_not_pruned_but_may_be_deleted(saver: Saver) -> None:
    graph = logging_graph(saver)
    for line in ("a", "b"):
        await graph.ainvoke({"lines": [line]}, config_of("delta"))
    await plain(saver).ainvoke(said("hello"), config_of("t"))
    before, others = await everything(saver, "delta"), await everything(saver, "t")
    with pytest.raises(DeltaChannelError):
        await saver.aprune(["t", "delta"])
    assert (await everything(saver, "delta"), await everything(saver, "t")) == (before, others)
    await saver.aprune(["delta"], strategy="delete")
    assert (await everything(saver, "delta"), await everything(saver, "t")) == ([], others)


@pytest.mark.parametrize(
    "arguments",
    [("one-string",), (["\0"],), ([""],), (["t"], "keep_some")],
    ids=["a string", "NUL", "empty", "strategy"],
)
async def test_a_pruning_that_cannot_be_meant_is_refused(
    tracker: RunTracker, saver: Saver, arguments: tuple[Any, ...]
) -> None:
    await turns(tracker, plain(saver), "t")
    before = await everything(saver, "t")
    threads, strategy = arguments[0], (*arguments, "keep_latest")[1]
    with pytest.raises(InvalidInputError):
        await saver.aprune(threads, strategy=strategy)
    assert await everything(saver, "t") == before


async def test_a_run_is_not_tied_to_the_threads_that_it_prunes(tracker: RunTracker, saver: Saver) -> None:
    await turns(tracker, plain(saver), "t")
    async with tracker.run() as run:
        await saver.aprune(["t"])
        await saver.adelete_for_runs([new_id()])
    assert run.thread_id is None
