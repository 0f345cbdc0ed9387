"""Many processes on one thread: never two of them at once, and each in its turn."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import multiprocessing
import operator
import time
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Annotated, Any, NamedTuple, TypedDict

from langgraph.graph import END, START, StateGraph
from rich.console import Console
from rich.table import Table

from skeino import SkeinoError, SkeinoSettings
from skeino.persistence import open_persistence
from skeino.persistence.claims import ClaimingStore, Queue
from skeino_asgi import RunTracker
from tests.chaos import fleet as fleets
from tests.chaos.fleet import Place, place_of
from tests.chaos.table import table_of

PROCESSES = 32
THREAD = "contested"
PATIENCE = 600.0

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.chaos.preloaded"])


class Count(TypedDict, total=False):
    count: Annotated[int, operator.add]


class Turn(NamedTuple):
    """One attempt: by a clock that all processes share, when it asked and was in the queue; and what it found."""

    asked: float
    joined: float
    fence: int
    counted: int


@dataclass
class _Asking:
    asked: float = 0.0
    joined: float = 0.0


_asking: ContextVar[_Asking] = ContextVar("asking")


class Watched:
    """The store, with a note of when each attempt came into the queue."""

    def __init__(self, store: ClaimingStore) -> None:
        self._store = store
        self.release_thread = store.release_thread

    async def claim_thread(self, run_id: str, thread_id: str, *, owner: str | None) -> int | None:
        asked = time.monotonic()
        fence = await self._store.claim_thread(run_id, thread_id, owner=owner)
        if fence is not None:
            self._joined(asked)
        return fence

    async def get_queue(self, thread_id: str) -> Queue | None:
        return await self._store.get_queue(thread_id)

    async def change_queue(
        self, thread_id: str, seen: Sequence[str], wanted: Sequence[str], *, takes: bool
    ) -> int | None:
        asked = time.monotonic()
        fence = await self._store.change_queue(thread_id, seen, wanted, takes=takes)
        if fence is not None and _asking.get().joined == 0.0:
            self._joined(asked)
        return fence

    def _joined(self, asked: float) -> None:
        noted = _asking.get()
        noted.asked, noted.joined = asked, time.monotonic()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 10_000)
    parser.add_argument("--processes", type=int, default=PROCESSES, help=f"default {PROCESSES}")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    results: dict[str, Any] = {
        "lease_seconds": fleets.LEASE,
        "processes": arguments.processes,
        "schemes": {},
        "failures": [],
    }
    for scheme in arguments.scheme or fleets.SCHEMES:
        with console.status(f"turns, {scheme}"), place_of(scheme) as place:
            figures = asyncio.run(take_turns(place, arguments.processes, arguments.times))
        results["failures"] += [f"{scheme}: {sentence}" for sentence in figures.pop("failures")]
        results["schemes"][scheme] = figures
    return results


def table(result: dict[str, Any]) -> Table:
    return table_of(f"{result['processes']} processes on one thread", result)


async def take_turns(place: Place, processes: int, times: int) -> dict[str, Any]:
    """Let so many processes count up one thread's state, so often in all."""
    settings = {**place.settings(), "thread_wait_seconds": PATIENCE, "thread_queue_limit": 2 * processes}
    async with open_persistence(SkeinoSettings(**settings)) as persistence:
        started = time.monotonic()
        told = await asyncio.gather(
            *(
                asyncio.to_thread(_process, settings, times // processes + (number < times % processes))
                for number in range(processes)
            )
        )
        seconds = time.monotonic() - started
        config: Any = {"configurable": {"thread_id": THREAD, "checkpoint_ns": ""}}
        latest = await persistence.checkpointer.aget_tuple(config)
    turns = [Turn(*turn) for some, _ in told for turn in some]
    failures = [failure for _, some in told for failure in some]
    assert latest is not None
    result = _judged(turns, latest.checkpoint["channel_values"]["count"], times)
    result["failures"] += failures[:10]
    result["per_second"] = round(len(turns) / seconds, 1)
    return result


def _judged(turns: Sequence[Turn], count: int, times: int) -> dict[str, Any]:
    by_fence = sorted(turns, key=lambda turn: turn.fence)
    lost = times - count
    twice = len(turns) - len({turn.counted for turn in turns}) + len(turns) - len({turn.fence for turn in turns})
    wrong = sum(before.counted >= after.counted for before, after in itertools.pairwise(by_fence))
    overtaken, latest = 0, 0.0
    for turn in by_fence:  # who was in the queue before another even asked must have had its turn before it
        overtaken += turn.joined < latest
        latest = max(latest, turn.asked)
    figures = {"turns": len(turns), "lost": lost, "two_at_once": twice + wrong, "overtaken": overtaken}
    sentences = {
        "turns": f"{len(turns)} of {times} had their turn",
        "lost": f"{lost} of {times} additions were lost",
        "two_at_once": f"{twice + wrong} have seen a state that another was changing",
        "overtaken": f"{overtaken} were overtaken by one that came later",
    }
    wanted = {"turns": times}
    failures = [sentence for name, sentence in sentences.items() if figures[name] != wanted.get(name, 0)]
    return {**figures, "failures": failures}


def _process(settings: dict[str, Any], attempts: int) -> tuple[list[tuple[float, float, int, int]], list[str]]:
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = _forks.Process(target=work, args=(settings, attempts, theirs))
    process.start()
    theirs.close()
    with contextlib.closing(ours):
        try:
            told: tuple[list[tuple[float, float, int, int]], list[str]] = ours.recv()
        except EOFError:
            told = [], [f"a process ended with exit code {process.exitcode}"]
    process.join()
    return told


def work(settings: dict[str, Any], attempts: int, events: Connection) -> None:
    """Count up, so often."""
    events.send(asyncio.run(_work(settings, attempts)))


async def _work(settings: dict[str, Any], attempts: int) -> tuple[list[tuple[Any, ...]], list[str]]:
    tracker = RunTracker(SkeinoSettings(**settings))
    turns: list[tuple[Any, ...]] = []
    failures: list[str] = []
    async with tracker.lifespan():
        claims: Any = tracker.openings.here()._claims
        claims._store = Watched(claims._store)
        builder = StateGraph(Count)
        builder.add_node("add", lambda _: {"count": 1})
        builder.add_edge(START, "add")
        builder.add_edge("add", END)
        graph: Any = builder.compile(checkpointer=tracker.checkpointer)
        for _ in range(attempts):
            noted = _Asking()
            _asking.set(noted)
            try:
                async with tracker.run(thread_id=THREAD) as run:
                    state = await graph.ainvoke({"count": 0}, run.config, durability="sync")
            except SkeinoError as exc:
                failures.append(f"{type(exc).__name__}: {exc}")
            else:
                turns.append((noted.asked, noted.joined, run.fence_of(THREAD), state["count"]))
    return turns, failures
