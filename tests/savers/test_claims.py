"""One run at a time writes to a thread: what a graph computes, it computes on a state that nobody else is changing."""

from __future__ import annotations

import asyncio
import contextvars
import operator
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated, Any, TypedDict

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import END, START, StateGraph

from skeino import SkeinoSettings
from skeino.errors import InvalidInputError, RunInterruptedError, ThreadBusyError
from skeino.persistence import RunStampMixin
from skeino.persistence.access import allow_write
from skeino.runs import current_run_var
from skeino.testing import the_run
from skeino.testing.leases import keeping
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, checkpoints, config_of, said, stamps


class Said(TypedDict, total=False):
    messages: Annotated[list[str], operator.add]


class Stage:
    """A graph whose node says that it has begun, and goes on when it is told to."""

    def __init__(self, saver: Saver) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.go_on: dict[str, asyncio.Event] = {}
        graph = StateGraph(Said)
        graph.add_node("answer", self._answer)
        graph.add_edge(START, "answer")
        graph.add_edge("answer", END)
        self.graph: Any = graph.compile(checkpointer=saver)

    async def _answer(self, state: Said) -> Said:
        text = state["messages"][-1]
        self.begun.put_nowait(text)
        if text in self.go_on:
            await self.go_on[text].wait()
        return {"messages": [f"answer to {text} after {len(state['messages']) - 1}"]}

    def holding(self, text: str) -> asyncio.Event:
        return self.go_on.setdefault(text, asyncio.Event())

    async def told(self, tracker: RunTracker, text: str, thread_id: str = "t", **options: Any) -> Any:
        async with tracker.run(thread_id=thread_id, **options) as run:
            await self.graph.ainvoke(said(text), run.config, durability="sync")
        return run


@pytest.fixture
def stage(saver: Saver) -> Stage:
    return Stage(saver)


@asynccontextmanager
async def two_processes(settings: SkeinoSettings) -> AsyncIterator[tuple[RunTracker, RunTracker]]:
    """Two trackers that share nothing but the database."""
    async with AsyncExitStack() as stack:
        trackers = RunTracker(settings), RunTracker(settings)
        for tracker in trackers:
            await stack.enter_async_context(tracker.lifespan())
        yield trackers


def apart(run: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that is no part of the run that begins it."""
    return asyncio.create_task(run, context=contextvars.Context())


async def said_on(saver: Saver, thread_id: str = "t") -> list[str]:
    latest = await saver.aget_tuple(config_of(thread_id))
    return [] if latest is None else list(latest.checkpoint["channel_values"]["messages"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


# ── In one process, on every backend ─────────────────────────────────────────────────────────────────────


async def test_the_second_run_waits_and_computes_on_what_the_first_has_left(tracker: RunTracker, stage: Stage) -> None:
    first_may_end = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    assert await stage.begun.get() == "one"
    second = asyncio.create_task(stage.told(tracker, "two"))
    await asyncio.sleep(0.2)
    assert stage.begun.empty(), "the second run has loaded a state that the first is about to change"
    assert not second.done()
    first_may_end.set()
    await asyncio.gather(first, second)
    assert await said_on(tracker.checkpointer) == ["one", "answer to one after 0", "two", "answer to two after 2"]


async def test_runs_take_their_turn_in_the_order_in_which_they_came(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("0")
    runs = [asyncio.create_task(stage.told(tracker, "0"))]
    assert await stage.begun.get() == "0"
    for number in range(1, 6):
        runs.append(asyncio.create_task(stage.told(tracker, str(number))))
        await asyncio.sleep(0.1)
    go_on.set()
    await asyncio.gather(*runs)
    assert (await said_on(tracker.checkpointer))[::2] == ["0", "1", "2", "3", "4", "5"]


async def test_reads_are_not_kept_waiting(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    async with asyncio.timeout(5), tracker.run(thread_id="t") as reading:
        state = await stage.graph.aget_state(reading.config)
        assert state.values["messages"] == ["one"]
        assert [one async for one in stage.graph.aget_state_history(reading.config)]
        assert await asyncio.to_thread(tracker.checkpointer.get_tuple, reading.config)
    go_on.set()
    await first


async def test_other_threads_are_not_kept_waiting(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    async with asyncio.timeout(5):
        await stage.told(tracker, "two", "u")
    go_on.set()
    await first


async def test_reject_raises_at_once_and_leaves_nothing(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    with pytest.raises(ThreadBusyError, match="'t' is busy: another run writes to it"):
        await stage.told(tracker, "two", multitask_strategy="reject")
    go_on.set()
    await first
    assert await said_on(tracker.checkpointer) == ["one", "answer to one after 0"]
    runs = await tracker.metadata_store.search_runs(sort_order="asc")
    assert [run["status"] for run in runs] == ["success", "interrupted"]
    assert [run["error"] and run["error"]["code"] for run in runs] == [None, "thread_busy"]
    thread = await tracker.metadata_store.get_thread("t")
    assert thread is not None
    assert thread["status"] == "idle"
    await stage.told(tracker, "three", multitask_strategy="reject")


async def test_interrupt_takes_the_thread_from_the_run_that_has_it(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    second = await stage.told(tracker, "two", multitask_strategy="interrupt")
    go_on.set()
    with pytest.raises(RunInterruptedError, match="was interrupted by another run on the thread 't'"):
        await first
    assert await said_on(tracker.checkpointer) == ["one", "two", "answer to two after 1"]
    await tracker.settled()
    (interrupted,) = await tracker.metadata_store.search_runs(status="interrupted")
    assert interrupted["error"] is not None
    assert interrupted["error"]["code"] == "run_interrupted"
    assert (await the_run(tracker.metadata_store, second.run_id))["status"] == "success"
    thread = await tracker.metadata_store.get_thread("t")
    assert thread is not None
    assert thread["status"] == "idle", "the run that has lost the thread says nothing about it"


async def test_rollback_deletes_what_the_interrupted_run_has_written(tracker: RunTracker, stage: Stage) -> None:
    await stage.told(tracker, "before")
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    assert [await stage.begun.get(), await stage.begun.get()] == ["before", "one"]
    second = await stage.told(tracker, "two", multitask_strategy="rollback")
    go_on.set()
    with pytest.raises(RunInterruptedError):
        await first
    said_now = await said_on(tracker.checkpointer)
    assert said_now == ["before", "answer to before after 0", "two", "answer to two after 2"]
    assert second.run_id in stamps(await checkpoints(tracker.checkpointer, "t"))
    assert len(set(stamps(await checkpoints(tracker.checkpointer, "t")))) == 2


async def test_interrupt_takes_the_turn_of_those_that_wait(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    waiting = asyncio.create_task(stage.told(tracker, "two"))
    await asyncio.sleep(0.2)
    await stage.told(tracker, "three", multitask_strategy="interrupt")
    go_on.set()
    ends = await asyncio.gather(first, waiting, return_exceptions=True)
    assert [type(end) for end in ends] == [RunInterruptedError, RunInterruptedError]
    assert (await said_on(tracker.checkpointer))[-2:] == ["three", "answer to three after 1"]


async def test_two_graphs_at_once_in_one_run_are_one_writer(tracker: RunTracker, stage: Stage) -> None:
    async with asyncio.timeout(10), tracker.run(thread_id="t") as run:
        await asyncio.gather(*(stage.graph.ainvoke(said(str(number)), run.config) for number in range(3)))
        await stage.graph.ainvoke(said("last"), run.config)
    assert (await said_on(tracker.checkpointer))[-2] == "last"


async def test_a_run_within_a_run_writes_to_the_outer_ones_thread(tracker: RunTracker, stage: Stage) -> None:
    async with asyncio.timeout(10), tracker.run(thread_id="t") as outer:
        await stage.graph.ainvoke(said("one"), outer.config)
        inner = await stage.told(tracker, "two")
        await stage.graph.ainvoke(said("three"), outer.config)
    assert (await said_on(tracker.checkpointer))[::2] == ["one", "two", "three"]
    assert inner.run_id in stamps(await checkpoints(tracker.checkpointer, "t"))


async def test_a_run_that_gives_up_waiting_is_in_nobodys_way(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    impatient = asyncio.create_task(stage.told(tracker, "two"))
    await asyncio.sleep(0.15)
    third = asyncio.create_task(stage.told(tracker, "three"))
    await asyncio.sleep(0.15)
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    go_on.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, third)
    assert (await said_on(tracker.checkpointer))[::2] == ["one", "three"]


async def test_who_does_not_get_one_thread_keeps_the_others(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("two")
    async with tracker.run(thread_id="one", multitask_strategy="reject") as run:
        await stage.graph.ainvoke(said("one"), run.config)
        assert await stage.begun.get() == "one"
        other = apart(stage.told(tracker, "two", thread_id="two"))
        assert await stage.begun.get() == "two"
        with pytest.raises(ThreadBusyError):
            await stage.graph.ainvoke(said("too"), config_of("two"))
        with pytest.raises(ThreadBusyError):
            await apart(stage.told(tracker, "not now", thread_id="one", multitask_strategy="reject"))
        await stage.graph.ainvoke(said("more"), run.config)
        go_on.set()
        await other
    assert len(await said_on(tracker.checkpointer, "one")) == 4
    assert len(await said_on(tracker.checkpointer, "two")) == 2
    assert [(await the_run(tracker.metadata_store, one.run_id))["status"] for one in (run, await other)] == [
        "success",
        "success",
    ]


async def test_a_write_without_a_graph_claims_as_well(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()
    async with tracker.run(thread_id="t", multitask_strategy="reject") as run:
        with pytest.raises(ThreadBusyError):
            await stage.graph.aupdate_state(run.config, said("by hand"), as_node="answer")
    go_on.set()
    await first


async def test_a_graphs_synchronous_methods_claim_in_their_thread(tracker: RunTracker, stage: Stage) -> None:
    graph = StateGraph(Said)
    graph.add_node("answer", lambda state: {"messages": [f"answer after {len(state['messages']) - 1}"]})
    graph.add_edge(START, "answer")
    compiled: Any = graph.compile(checkpointer=tracker.checkpointer)
    go_on = stage.holding("one")
    first = asyncio.create_task(stage.told(tracker, "one"))
    await stage.begun.get()

    async def in_a_thread() -> None:
        async with tracker.run(thread_id="t") as run:
            await asyncio.to_thread(compiled.invoke, said("two"), run.config)

    second = asyncio.create_task(in_a_thread())
    await asyncio.sleep(0.3)
    assert not second.done()
    go_on.set()
    async with asyncio.timeout(10):
        await asyncio.gather(first, second)
    assert (await said_on(tracker.checkpointer))[-1] == "answer after 2"


async def test_a_queue_is_bounded_in_length_and_in_time(settings: SkeinoSettings) -> None:
    narrow = settings.model_copy(update={"thread_queue_limit": 2, "thread_wait_seconds": 0.6})
    tracker = RunTracker(narrow)
    async with tracker.lifespan():
        stage = Stage(tracker.checkpointer)
        go_on = stage.holding("one")
        first = asyncio.create_task(stage.told(tracker, "one"))
        await stage.begun.get()
        second = asyncio.create_task(stage.told(tracker, "two"))
        await asyncio.sleep(0.2)
        with pytest.raises(ThreadBusyError, match="2 runs wait for it already"):
            await stage.told(tracker, "three")
        with pytest.raises(ThreadBusyError, match=r"was busy for 0\.6 s"):
            await second
        go_on.set()
        await first
        assert await said_on(tracker.checkpointer) == ["one", "answer to one after 0"]


async def test_a_strategy_that_there_is_not_is_refused(tracker: RunTracker) -> None:
    async with tracker.run(thread_id="t") as run:
        with pytest.raises(InvalidInputError, match="one of enqueue, reject, interrupt, rollback"):
            run.multitask_strategy = "wait"  # type: ignore[assignment]
    with pytest.raises(InvalidInputError, match="one of enqueue, reject, interrupt, rollback"):
        async with tracker.run(thread_id="t", multitask_strategy="wait"):  # type: ignore[arg-type]
            pass
    assert not tracker.openings.here()._active, "a run that has not begun is kept as one in progress"


async def test_a_graph_that_outlives_its_run_loses_against_the_next(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    async with tracker.run(thread_id="t") as run:
        detached = asyncio.create_task(stage.graph.ainvoke(said("one"), run.config, durability="sync"))
        await stage.begun.get()
    await stage.told(tracker, "two")
    go_on.set()
    with pytest.raises(RunInterruptedError):
        await detached
    assert (await said_on(tracker.checkpointer))[-2:] == ["two", "answer to two after 1"]


async def test_and_goes_on_where_there_is_no_next(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("one")
    async with tracker.run(thread_id="t") as run:
        detached = asyncio.create_task(stage.graph.ainvoke(said("one"), run.config, durability="sync"))
        await stage.begun.get()
    go_on.set()
    await detached
    assert await said_on(tracker.checkpointer) == ["one", "answer to one after 0"]
    await stage.told(tracker, "two")


async def test_a_run_within_a_run_that_outlives_it_loses_against_the_next(tracker: RunTracker, stage: Stage) -> None:
    go_on = stage.holding("inner")
    async with tracker.run(thread_id="t") as outer:
        await stage.graph.ainvoke(said("outer"), outer.config)
        inner = asyncio.create_task(stage.told(tracker, "inner"))
        while await stage.begun.get() != "inner":
            pass
    await apart(stage.told(tracker, "next"))
    go_on.set()
    with pytest.raises(RunInterruptedError):
        await inner
    assert (await said_on(tracker.checkpointer))[-2] == "next"


@pytest.mark.parametrize("made_again", [False, True])
async def test_a_run_whose_thread_is_deleted_brings_nothing_back(
    tracker: RunTracker, stage: Stage, made_again: bool
) -> None:
    go_on = stage.holding("one")
    run = asyncio.create_task(stage.told(tracker, "one", owner="ann"))
    await stage.begun.get()
    await tracker.persistence.delete_thread("t", force=True)
    if made_again:
        await stage.told(tracker, "two", owner="bob")
    go_on.set()
    with pytest.raises(RunInterruptedError):
        await run
    left = await said_on(tracker.checkpointer)
    assert left == (["two", "answer to two after 0"] if made_again else [])


async def test_the_ledger_of_a_run_that_is_cancelled_has_what_it_wrote(tracker: RunTracker, stage: Stage) -> None:
    for number in range(40):
        thread_id = f"t{number}"
        task = asyncio.create_task(stage.told(tracker, "one", thread_id))
        await asyncio.sleep(0.0005 * number)
        task.cancel()
        await asyncio.wait([task])
        await tracker.settled()
        for row in await tracker.metadata_store.search_runs(thread_id=thread_id):
            thread = await tracker.metadata_store.get_thread(thread_id)
            found = await checkpoints(tracker.checkpointer, thread_id)
            for _ in range(100):  # on MongoDB they have a writer of their own, which may come later
                if row["checkpoint_count"] == len(found):
                    break
                await asyncio.sleep(0.02)
                found = await checkpoints(tracker.checkpointer, thread_id)
            assert row["checkpoint_count"] == len(found), number
            assert row["last_checkpoint_id"] == (found[0].checkpoint["id"] if found else None)
            assert thread is not None
            assert row["status"] != "interrupted" or thread["status"] == ("interrupted" if found else "idle")


async def test_the_ledger_of_a_run_that_is_cancelled_before_it_writes_has_nothing(
    tracker: RunTracker, saver: Saver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint whose saver has not come to write it is not there."""

    async def endless(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(60)

    def stock(name: str) -> None:
        base = next(one for one in type(saver).__mro__ if name in vars(one) and one is not RunStampMixin)
        monkeypatch.setattr(base, name, endless)

    async with tracker.run(thread_id="t") as run:
        config = config_of("t", checkpoint_ns="")
        stored = await saver.aput(config, empty_checkpoint(), {}, {})
        stock("aput")
        stock("aput_writes")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await saver.aput(config, empty_checkpoint(), {}, {})
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await saver.aput_writes(stored, [("__interrupt__", "?")], "task")
    assert (run.ledger.checkpoint_count, run.ledger.paused) == (1, False)


# ── Between processes, on every backend that has the two halves in one database ──────────────────────────


async def test_processes_wait_for_each_other(locking_settings: SkeinoSettings) -> None:
    async with two_processes(locking_settings) as (here, there):
        one, other = Stage(here.checkpointer), Stage(there.checkpointer)
        go_on = one.holding("one")
        first = asyncio.create_task(one.told(here, "one"))
        await one.begun.get()
        second = asyncio.create_task(other.told(there, "two"))
        await asyncio.sleep(0.3)
        assert other.begun.empty()
        go_on.set()
        async with asyncio.timeout(10):
            await asyncio.gather(first, second)
        assert await said_on(here.checkpointer) == ["one", "answer to one after 0", "two", "answer to two after 2"]


@pytest.mark.parametrize("durability", ["sync", "async", "exit"])
async def test_another_processs_run_is_interrupted_when_it_writes(
    locking_settings: SkeinoSettings, durability: Any
) -> None:
    async with two_processes(locking_settings) as (here, there):
        one, other = Stage(here.checkpointer), Stage(there.checkpointer)
        go_on = one.holding("one")

        async def interrupted() -> None:
            async with here.run(thread_id="t") as run:
                await one.graph.ainvoke(said("one"), run.config, durability=durability)

        first = asyncio.create_task(interrupted())
        await one.begun.get()
        await other.told(there, "two", multitask_strategy="interrupt")
        before = await checkpoints(there.checkpointer, "t")
        go_on.set()
        with pytest.raises(RunInterruptedError, match="has lost the thread 't'"):
            await first
        assert len(await checkpoints(there.checkpointer, "t")) == len(before), "it has written beside its successor"
        assert (await said_on(there.checkpointer))[-2] == "two"
        await here.settled()
        (row,) = await there.metadata_store.search_runs(status="interrupted")
        assert row["error"] is not None
        assert row["error"]["code"] == "run_interrupted"


async def test_what_a_run_writes_to_a_thread_it_has_lost_is_refused_however_it_is_written(
    locking_settings: SkeinoSettings,
) -> None:
    async with two_processes(locking_settings) as (here, there):
        one, other = Stage(here.checkpointer), Stage(there.checkpointer)
        await one.told(here, "before")
        saver, config = here.checkpointer, config_of("t", checkpoint_ns="")
        latest = await saver.aget_tuple(config)
        assert latest is not None
        runs = []
        for _ in range(4):
            current_run_var.set(None)
            context = here.run(thread_id="t", multitask_strategy="interrupt")
            run = await context.__aenter__()
            await allow_write(run, "t")
            runs.append((context, run))
        current_run_var.set(None)
        await other.told(there, "two", multitask_strategy="interrupt")
        for _, run in runs:
            run.holds._lost = None  # so that the database has to find out
        before = await checkpoints(there.checkpointer, "t")
        task = "0199d0c7-0000-7000-8000-000000000000"
        new = {**latest.checkpoint, "id": "1f0b0000-0000-6000-8000-000000000000"}
        written = [
            lambda: saver.aput(latest.config, new, latest.metadata, {}),  # type: ignore[arg-type]
            lambda: saver.aput_writes(latest.config, [("messages", "late")], task),
            lambda: asyncio.to_thread(saver.put, latest.config, new, latest.metadata, {}),  # type: ignore[arg-type]
            lambda: asyncio.to_thread(saver.put_writes, latest.config, [("messages", "late")], task),
        ]

        async def refused(run: Any, write: Any) -> None:
            current_run_var.set(run)
            assert run.fence_of("t") is not None
            with pytest.raises(RunInterruptedError):
                await write()

        await asyncio.gather(*(refused(run, write) for (_, run), write in zip(runs, written, strict=True)))
        after = await checkpoints(there.checkpointer, "t")
        assert [(one.checkpoint["id"], one.pending_writes) for one in after] == [
            (one.checkpoint["id"], one.pending_writes) for one in before
        ]
        for context, _ in reversed(runs):
            await context.__aexit__(None, None, None)


async def test_a_refused_write_fails_none_beside_it(locking_settings: SkeinoSettings) -> None:
    """Those that are written with it, in one batch, are written."""
    async with two_processes(locking_settings) as (here, there):
        stage, other = Stage(here.checkpointer), Stage(there.checkpointer)
        events = [stage.holding(str(number)) for number in range(12)]
        runs = [asyncio.create_task(stage.told(here, str(number), f"t{number}")) for number in range(12)]
        for _ in runs:
            await stage.begun.get()
        for number in (3, 7):
            await other.told(there, "late", f"t{number}", multitask_strategy="interrupt")
        for event in events:
            event.set()
        ends = await asyncio.gather(*runs, return_exceptions=True)
        assert [isinstance(end, RunInterruptedError) for end in ends] == [number in (3, 7) for number in range(12)]
        for number in range(12):
            last = "answer to late after 1" if number in (3, 7) else f"answer to {number} after 0"
            assert (await said_on(there.checkpointer, f"t{number}"))[-1] == last


async def test_the_run_of_a_worker_that_counts_as_dead_writes_no_more(locking_settings: SkeinoSettings) -> None:
    async with two_processes(locking_settings) as (here, there):
        stage = Stage(here.checkpointer)
        go_on = stage.holding("one")
        first = asyncio.create_task(stage.told(here, "one"))
        await stage.begun.get()
        (row,) = await there.metadata_store.search_runs()
        async with keeping(there.metadata_store) as keeper:
            assert await keeper(keeper.leases.end_runs, row["worker_id"], [row["run_id"]]) == 1
        before = len(await checkpoints(there.checkpointer, "t"))
        go_on.set()
        with pytest.raises(RunInterruptedError):
            await first
        assert len(await checkpoints(there.checkpointer, "t")) == before
        row = await the_run(there.metadata_store, row["run_id"])
        assert row["status"] == "error"
