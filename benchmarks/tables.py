"""How long a query takes, and a run, when the tables have more rows: a thousand, and a million."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from benchmarks import filling, rows, runs
from benchmarks.servers import Place
from benchmarks.throughput import Effort, Variant, measured, number_of_turns, stepping
from skeino.persistence import MetadataStoreProtocol, open_persistence

ROWS = (100, 1_000, 10_000, 100_000, 1_000_000)
SMALL, LARGE = 1_000, 1_000_000
PAGE = 10
RUN = "start and finish of a run"

Query = Callable[[], Awaitable[Any]]


def queries(store: MetadataStoreProtocol, number: int) -> dict[str, Query]:
    """What is asked of tables with so many rows, by its name; a page has ten rows."""
    middle = number // 2
    ten = range(middle, middle + PAGE)
    recently = filling.LAST - timedelta(seconds=10 * (PAGE - 1))
    rare = filling.rare_metadata(number)
    return {
        "get_thread": lambda: store.get_thread(rows.thread_id(middle)),
        "search_threads, last changed": lambda: store.search_threads(limit=PAGE),
        "search_threads, the eleventh page": lambda: store.search_threads(limit=PAGE, offset=min(100, number - PAGE)),
        "search_threads, busy": lambda: store.search_threads(status="busy", limit=PAGE),
        "search_threads, idle": lambda: store.search_threads(status="idle", limit=PAGE),
        "search_threads, interrupted (ten rows)": lambda: store.search_threads(status="interrupted", limit=PAGE),
        "search_threads, of an owner with ten": lambda: store.search_threads(owner=filling.SMALL_OWNER, limit=PAGE),
        "search_threads, of an owner with a ninth": lambda: store.search_threads(owner="owner-1", limit=PAGE),
        "search_threads, by metadata (ten rows)": lambda: store.search_threads(metadata=rare, limit=PAGE),
        "search_threads, by ten ids": lambda: store.search_threads(ids=[*map(rows.thread_id, ten)], limit=PAGE),
        "search_threads, the ten made last": lambda: store.search_threads(created_after=recently, limit=PAGE),
        "get_run": lambda: store.get_run(rows.run_id(middle)),
        "search_runs, newest": lambda: store.search_runs(limit=PAGE),
        "search_runs, of a thread": lambda: store.search_runs(
            thread_id=rows.thread_id(middle - middle % 1000), limit=PAGE
        ),
        "search_runs, active": lambda: store.search_runs(status=["pending", "running"], limit=PAGE),
        "search_runs, ended well": lambda: store.search_runs(status="success", limit=PAGE),
        "search_runs, timed out (ten rows)": lambda: store.search_runs(status="timeout", limit=PAGE),
        "search_runs, of an owner with ten": lambda: store.search_runs(owner=filling.SMALL_OWNER, limit=PAGE),
        "search_runs, by metadata (ten rows)": lambda: store.search_runs(metadata=rare, limit=PAGE),
    }


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database; `progress` is told which part of it is done, half of it for filling the tables."""
    sizes = [number for number in ROWS if number <= effort.rows]
    async with AsyncExitStack() as stack:
        variants: dict[tuple[str, int], Variant] = {}
        for number in sizes:
            part = number / (2 * sum(sizes))
            uri = await filling.filled(place, number, lambda done, part=part: progress(part * done))  # type: ignore[misc]
            persistence = await stack.enter_async_context(open_persistence(place.settings(uri)))
            store = persistence.metadata_store
            for name, query in queries(store, number).items():
                assert await query(), f"{name}: nothing is found"
                variants[name, number] = stepping({"query": lambda _, query=query: query()})  # type: ignore[misc]
            variants[RUN, number] = runs.tracked(store, first=2 * LARGE)
        turns = number_of_turns(len(variants), at_once=(1,), effort=effort)
        in_turn = {key: variants[key] for key in sorted(variants)}  # the sizes of a query next to each other
        figures = await measured(in_turn, at_once=(1,), effort=effort, after_turn=lambda: progress(0.5 / turns))
    return {
        "database": place.version,
        "queries": {
            name: {str(number): figures[name, number]["1"] for number in sizes}
            for name in dict.fromkeys(name for name, _ in variants)
        },
    }


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    numbers = [*next(iter(next(iter(schemes.values()))["queries"].values()))]
    small, large = str(SMALL), numbers[-1]
    headings = [f"`{scheme}`, {power_of_ten(small)} rows | {power_of_ten(large)} | times" for scheme in schemes]
    lines = [f"| ms | {' | '.join(headings)} |", "|---|" + "---|---|---|" * len(schemes)]
    for name in next(iter(schemes.values()))["queries"]:
        cells = [cell for result in schemes.values() for cell in _cells(result["queries"][name], small, large)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def power_of_ten(number: str) -> str:
    """The number, as powers of ten are read."""
    return f"10{_SUPERSCRIPTS[len(number) - 1]}"


_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


def milliseconds(figure: dict[str, Any]) -> float:
    """How long one takes: the median of the rounds' means."""
    return 1000.0 / float(figure["median"])


def _cells(figures: dict[str, Any], small: str, large: str) -> tuple[str, str, str]:
    before, after = milliseconds(figures[small]), milliseconds(figures[large])
    return f"{before:.2f}", f"{after:.2f}" if after < 100 else f"{after:,.0f}", f"× {after / before:.1f}"
