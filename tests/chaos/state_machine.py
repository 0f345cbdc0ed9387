"""Operations in any order, on every backend: what the store and the saver answer is what the model answers."""

from __future__ import annotations

import argparse
import time
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, cast

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from langgraph.checkpoint.base import empty_checkpoint
from rich.console import Console
from rich.table import Table

from skeino.errors import StoreError, ThreadNotFoundError
from skeino.persistence import ANY_OWNER
from skeino.runs import new_id
from skeino.testing.making import ended_in_turn, ending, everything
from skeino.testing.searching_at_random import model as found_in
from tests.chaos.bench import ALL_SCHEMES, Bench, bench_of, new_database
from tests.chaos.drawn import (
    THREADS,
    configs,
    ended,
    errors,
    metadata,
    owner_filters,
    owners,
    run_searches,
    runs,
    settled,
    starts,
    thread_searches,
    threads,
    times,
    ttls,
    workers,
)
from tests.chaos.model import Model, Row, answer_of, now

STEPS = 50


class StoreMachine(RuleBasedStateMachine):
    """Each rule does one thing to the backend and to the model; after each, all rows are compared."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.bench = bench
        self.tracker = bench.empty()
        self.store = self.tracker.metadata_store
        self.saver: Any = self.tracker.checkpointer
        self.model = Model()
        self.tracked: list[str] = []
        self.looks = False  # at all checkpoints, after the next step

    def same(self, of_model: Callable[[], Any], of_store: Coroutine[Any, Any, Any]) -> Any:
        """Both answer the same, or fail in the same way. The model goes first: it notes the time."""
        expected = answer_of(of_model)
        answer = self.bench.do(_answer_of(of_store))
        if isinstance(answer, dict) and isinstance(expected, dict):  # rows, with times that the model has to learn
            self._learn()
            kind = "thread" if "run_id" not in answer else "run"
            where = self.model.all_threads() if kind == "thread" else self.model.all_runs()
            expected = next((row for row in where if row[f"{kind}_id"] == answer[f"{kind}_id"]), expected)
        assert answer == expected, f"the store answers {answer!r}, the model {expected!r}"
        return answer

    # ── A run's life ─────────────────────────────────────────────────────────────────────────────────────

    @initialize(starts=st.lists(starts, min_size=2, max_size=6))
    def start_some(self, starts: list[Row]) -> None:
        """Most of what follows needs runs and threads."""
        for start in starts:
            self._start(**start)

    @rule(start=starts)
    def start_run(self, start: Row) -> None:
        self._start(**start)

    def _start(self, run: str, worker: str, thread: Any, owner: Any, meta: Row, at: Any, make: bool) -> None:
        self.same(
            lambda: self.model.start_run(run, worker, thread, owner, meta, at, make),
            self.store.start_run(
                run,
                worker_id=worker,
                thread_id=thread,
                owner=owner,
                metadata=meta,
                created_at=at,
                create_thread=make,
            ),
        )

    @rule(run=runs, thread=threads, owner=owners)
    def attach_thread(self, run: str, thread: str, owner: Any) -> None:
        self.same(
            lambda: self.model.attach_thread(run, thread, owner),
            self.store.attach_thread(run, thread, owner=owner),
        )

    @rule(
        run=runs, worker=workers, status=ended, at=times, thread=st.none() | threads, left=settled, meta=metadata,
        error=errors, count=st.integers(0, 2), paused=st.booleans(), times=st.integers(1, 2),
    )  # fmt: skip
    def finish_run(
        self, run: str, worker: str, status: Any, at: Any, thread: Any, left: Any, meta: Row, error: Any, count: int,
        paused: bool, times: int,
    ) -> None:  # fmt: skip
        finish = ending(
            run,
            worker_id=worker,
            status=status,
            finished_at=at,
            thread_id=thread,
            thread_status=left,
            metadata=meta,
            error=error,
            http_status=200 if count else None,
            checkpoint_count=count,
            first_checkpoint_id="c1" if count else None,
            last_checkpoint_id=f"c{count}" if count else None,
            paused=paused,
        )
        for _ in range(times):
            self.same(lambda: self.model.finish_run(cast("Row", finish)), ended_in_turn(self.store, finish))

    @rule(worker=workers, error=errors.filter(bool))
    def interrupt_runs(self, worker: str, error: Any) -> None:
        self.same(lambda: self.model.interrupt_runs(worker, error), self.store.interrupt_runs(worker, error))

    # ── Rows ─────────────────────────────────────────────────────────────────────────────────────────────

    @rule(run=runs, meta=metadata, owner=owner_filters)
    def update_run(self, run: str, meta: Row, owner: Any) -> None:
        self.same(
            lambda: self.model.update_run(run, meta, owner), self.store.update_run(run, metadata=meta, owner=owner)
        )

    @rule(run=runs, thread=threads, owner=owner_filters)
    def get_rows(self, run: str, thread: str, owner: Any) -> None:
        self.same(lambda: self.model.get_run(run, owner), self.store.get_run(run, owner=owner))
        self.same(lambda: self.model.get_thread(thread, owner), self.store.get_thread(thread, owner=owner))

    @rule(thread=threads, owner=owners, meta=metadata, ttl=ttls, if_exists=st.sampled_from(["raise", "do_nothing"]))
    def create_thread(self, thread: str, owner: Any, meta: Row, ttl: Any, if_exists: Any) -> None:
        self.same(
            lambda: self.model.create_thread(thread, owner, meta, ttl, if_exists),
            self.store.create_thread(thread, owner=owner, metadata=meta, ttl=ttl, if_exists=if_exists),
        )

    @rule(
        thread=threads, meta=st.none() | metadata, config=configs, ttl=st.just("keep") | ttls,
        owner=owner_filters,
    )  # fmt: skip
    def update_thread(self, thread: str, meta: Any, config: Any, ttl: Any, owner: Any) -> None:
        self.same(
            lambda: self.model.update_thread(thread, meta, config, ttl, owner),
            self.store.update_thread(thread, metadata=meta, config=config, ttl=ttl, owner=owner),
        )

    @rule(
        thread=threads,
        busy=st.sampled_from([True, True, False]),
        force=st.sampled_from([False, False, True]),
        owner=st.just(ANY_OWNER) | owner_filters,
        ignores=st.sampled_from(["its run", "another run", "none"]),
        run=runs,
    )
    def delete_rows(self, thread: str, busy: bool, force: bool, owner: Any, ignores: str, run: str) -> None:
        if busy:  # if there is one
            thread = next((row["thread_id"] for row in self.model.all_threads() if row["status"] == "busy"), thread)
        its_run = next((one["run_id"] for one in self.model.all_runs() if one["thread_id"] == thread), run)
        ignored = {"its run": its_run, "another run": run, "none": None}[ignores]
        self.same(
            lambda: self.model.delete_thread(thread, force, owner, ignored),
            self.store.delete_thread(thread, force=force, owner=owner, ignore_run=ignored),
        )

    @rule(number=st.integers(0, 5), thread=threads, missing=runs, owner=owners)
    def restore(self, number: int, thread: str, missing: str, owner: Any) -> None:
        """Rows that were there, with another id, or another owner's thread."""
        if self.model.threads:
            row = [*self.model.threads.values()][number % len(self.model.threads)]
            rows = [{**row, "thread_id": thread, "owner": owner, "status": "busy" if number == 0 else row["status"]}]
            self.same(lambda: self.model.restore_threads(rows), self.store.restore_threads(cast("Any", rows)))
        if self.model.runs:
            row = [*self.model.runs.values()][number % len(self.model.runs)]
            rows = [{**row, "run_id": missing, "owner": owner, "thread_id": thread if number % 2 else None}]
            self.same(lambda: self.model.restore_runs(rows), self.store.restore_runs(cast("Any", rows)))

    @rule(of_threads=st.lists(thread_searches, max_size=3), of_runs=st.lists(run_searches, max_size=3))
    def search(self, of_threads: list[Row], of_runs: list[Row]) -> None:
        for wanted in of_threads:
            expected = found_in(self.model.all_threads(), "thread_id", wanted)
            assert self.bench.do(self.store.search_threads(**wanted)) == expected
        for wanted in of_runs:
            expected = found_in(self.model.all_runs(), "run_id", wanted)
            assert self.bench.do(self.store.search_runs(**wanted)) == expected

    # ── Checkpoints ──────────────────────────────────────────────────────────────────────────────────────

    @rule(thread=threads, owner=owners, count=st.integers(1, 3))
    def turn(self, thread: str, owner: Any, count: int) -> None:
        """A tracked run that writes checkpoints."""
        self.looks = True
        try:
            self.model.owned(thread, owner)
            allowed = True
        except ThreadNotFoundError:
            allowed = False
        begun = now()
        outcome = self.bench.do(_answer_of(self._turn(thread, owner, count)))
        if not allowed:
            assert outcome is ThreadNotFoundError, f"the thread is another owner's, and the turn ended with {outcome!r}"
            return
        run_id, worker_id, ids = outcome
        self.model.start_run(run_id, worker_id, thread, owner, {}, begun, True)
        ended_at = now(self.model.threads[thread]["updated_at"])
        written = {"checkpoint_count": count, "first_checkpoint_id": ids[0], "last_checkpoint_id": ids[-1]}
        self.model.finish_run(cast("Row", ending(run_id, worker_id=worker_id, finished_at=ended_at, **written)))
        self.model.runs[run_id]["finished_at"] = begun
        self.model.threads[thread]["updated_at"] = begun
        self.model.checkpoints.setdefault(thread, []).extend((one, run_id) for one in ids)
        self.tracked.append(run_id)

    async def _turn(self, thread: str, owner: Any, count: int) -> tuple[str, str | None, list[str]]:
        ids: list[str] = []
        async with self.tracker.run(thread_id=thread, owner=owner) as run:
            config: Any = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
            for _ in range(count):
                config = await self.saver.aput(config, empty_checkpoint(), {}, {})
                ids.append(config["configurable"]["checkpoint_id"])
        return run.run_id, run.worker_id, ids

    @rule(thread=threads, owner=owners)
    def read_in_a_run(self, thread: str, owner: Any) -> None:
        """What a run of an owner reads; one without an owner may read all."""
        begun = now()
        run_id, worker_id, found = self.bench.do(self._read(thread, owner))
        expected = answer_of(lambda: self.model.owned(thread, owner))
        if owner is None:
            expected = self.model.checkpoints.get(thread, [])[::-1]
        assert found == expected, f"the saver answers {found!r}, the model {expected!r}"
        self.model.start_run(run_id, worker_id, None, owner, {}, begun, True)
        learns = None if found is ThreadNotFoundError else thread
        self.model.finish_run(
            cast(
                "Row",
                ending(run_id, worker_id=worker_id, finished_at=begun, thread_id=learns, thread_status=None),
            )
        )

    async def _read(self, thread: str, owner: Any) -> Any:
        async with self.tracker.run(owner=owner) as run:
            found = await _answer_of(self._listed(thread))
        return run.run_id, run.worker_id, found

    @rule(how=st.sampled_from(["copy", "prune", "delete"]), thread=threads, copy=threads, number=st.integers(0, 3))
    def change_state(self, how: str, thread: str, copy: str, number: int) -> None:
        """What LangGraph's savers may be asked besides, by nobody in particular."""
        self.looks = True
        if how == "prune":
            self.same(lambda: self.model.prune(thread), self.saver.aprune([thread]))
        elif how == "delete":
            wanted = self.tracked[-number:] if number else [new_id()]
            self.same(lambda: self.model.delete_for_runs(wanted), self.saver.adelete_for_runs(wanted))
        elif thread != copy:
            self.same(lambda: self.model.copy_thread(thread, copy), self.saver.acopy_thread(thread, copy))

    @rule(thread=threads, force=st.booleans(), owner=owner_filters)
    def delete_both(self, thread: str, force: bool, owner: Any) -> None:
        def delete() -> None:
            try:
                self.model.delete_thread(thread, force, owner, None)
            except ThreadNotFoundError:
                if owner is not ANY_OWNER or not self.model.checkpoints.get(thread):
                    raise
            self.model.checkpoints.pop(thread, None)

        self.looks = True
        self.same(delete, self.tracker.persistence.delete_thread(thread, force=force, owner=owner))

    async def _listed(self, thread: str) -> list[tuple[str, str | None]]:
        config: Any = {"configurable": {"thread_id": thread}}
        return [
            (one.config["configurable"]["checkpoint_id"], one.metadata.get("run_id"))
            async for one in self.saver.alist(config)
        ]

    # ── After each ───────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def all_rows_and_checkpoints_are_those_of_the_model(self) -> None:
        found_threads, found_runs = self._learn()
        assert found_threads == found_in(self.model.all_threads(), "thread_id", _BY_CHANGE)
        assert found_runs == found_in(self.model.all_runs(), "run_id", _BY_BEGIN)
        if self.looks:
            for thread in THREADS:
                assert self.bench.do(self._listed(thread)) == self.model.checkpoints.get(thread, [])[::-1]
            self.looks = False

    def _learn(self) -> tuple[list[Row], list[Row]]:
        found: Any = self.bench.do(everything(self.store))
        self.model.learned(*found)
        return cast("tuple[list[Row], list[Row]]", found)


def compare(bench: Bench, examples: int, *, seed: int | None = None, shrink: bool = True) -> None:
    """Let the backend and the model do the same, in so many sequences of operations.

    Args:
        bench: the backend.
        examples: sequences of up to 50 operations.
        seed: of the sequences; always the same without one.
        shrink: whether to look for a short sequence that fails.

    Raises:
        AssertionError: they differ; its notes have the sequence.
    """

    def machine() -> StoreMachine:
        return StoreMachine(bench)

    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=seed is None,
        database=None,
        phases=(Phase.generate, *((Phase.shrink,) if shrink else ())),
        suppress_health_check=[*HealthCheck],
    )
    factory = machine if seed is None else hypothesis.seed(seed)(machine)
    run_state_machine_as_test(factory, settings=settings)  # type: ignore[arg-type]


async def _answer_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except StoreError as exc:
        return type(exc)


_BY_CHANGE: Row = {"sort_by": "updated_at", "limit": 1000}
_BY_BEGIN: Row = {"sort_by": "created_at", "limit": 1000}


# ── `python -m tests.chaos model` ────────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--examples", type=int, default=500, help="sequences of operations (default: 500)")
    parser.add_argument("--seed", type=int, default=1, help="of the first sequence (default: 1)")
    parser.add_argument("--scheme", action="append", choices=ALL_SCHEMES, help="only on this; may be given repeatedly")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    schemes: dict[str, Any] = {}
    failures: list[str] = []
    for scheme in arguments.scheme or ALL_SCHEMES:
        console.print(f"{scheme} …")
        begun = time.monotonic()
        with new_database(scheme) as uri, bench_of(scheme, uri) as bench:
            try:
                compare(bench, arguments.examples, seed=arguments.seed)
            except (AssertionError, ExceptionGroup) as exc:  # a group, where several things are wrong
                found = exc.exceptions if isinstance(exc, ExceptionGroup) else [exc]
                failures += [f"{scheme}: {''.join(traceback.format_exception_only(one))}" for one in found]
        seconds = round(time.monotonic() - begun, 1)
        schemes[scheme] = {"examples": arguments.examples, "steps_at_most": STEPS, "seconds": seconds}
    return {"harness": "model", "seed": arguments.seed, "schemes": schemes, "failures": failures}


def table(result: dict[str, Any]) -> Table:
    shown = Table("backend", "sequences", "seconds", title=f"As the model, seed {result['seed']}")
    for scheme, figures in result["schemes"].items():
        shown.add_row(scheme, str(figures["examples"]), str(figures["seconds"]))
    return shown
