"""24 processes open one database at the same moment: from nothing, an older version, or what a killed one left.

Each is a real process, forked from one that has imported all; its time is that of `open_persistence`, from a common
gun. A kill counts if the process had stopped at a point midway, before a statement of its set-up, and was killed there.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.chaos import next_versions
from tests.chaos.places import SCHEMES, Place, place_of
from tests.chaos.starting import Order

NUMBER = 24
OLD_RUNS = 30
LIMIT = 2.0  # seconds, of the 99th percentile

SCENARIOS = {
    "fresh": "nothing is there",
    "upgrade": "an older version is there",
    "half": "one was killed midway, before",
    "killed": "one is killed midway, meanwhile",
}

Orders = Callable[[Order], dict[str, Any]]


@dataclass
class Outcome:
    """Of all rounds of one scenario on one database."""

    scheme: str
    scenario: str
    software: str
    seconds: list[float] = field(default_factory=list)
    processor_seconds: list[float] = field(default_factory=list)
    """What of these the process itself worked."""
    kills: int = 0
    failures: list[str] = field(default_factory=list)

    def quantile(self, part: float) -> float:
        return _quantile(self.seconds, part)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=20, help="of each scenario (default: 20)")
    parser.add_argument("--scheme", action="append", choices=SCHEMES, help="only on this; may be given several times")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    schemes = arguments.scheme or SCHEMES
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    outcomes: list[Outcome] = []
    with Progress(console=console, transient=True) as progress, starter() as orders:
        for scheme in schemes:
            task = progress.add_task(scheme, total=len(SCENARIOS) * arguments.rounds)
            with place_of(scheme) as place:
                outcomes += measured(place, orders, arguments.rounds, lambda task=task: progress.advance(task))  # type: ignore[misc]
    failures = [sentence for outcome in outcomes for sentence in told(outcome)]
    if failures and load > processors:
        failures.append(f"The machine was busy when it began, with a load of {load:.1f}: times may be due to that.")
    return {
        "harness": "cold-starts",
        "processes": NUMBER,
        "rounds": arguments.rounds,
        "processors": processors,
        "load_before": round(load, 2),
        "outcomes": [_as_json(outcome) for outcome in outcomes],
        "failures": failures,
    }


def table(result: dict[str, Any]) -> Table:
    shown = Table(
        "database",
        "scenario",
        "starts",
        "failed",
        "kills midway",
        "p50 s",
        "p99 s",
        "longest s",
        "of it at work ms",
        title=f"{result['processes']} cold starts at once, {result['rounds']} rounds, on {result['processors']} "
        f"processors (load before: {result['load_before']})",
    )
    for one in result["outcomes"]:
        figures = (f"{one[name]:.2f}" for name in ("p50", "p99", "longest"))
        counts = (str(one[name]) for name in ("starts", "failed", "kills"))
        working = f"{1000 * one['processor_seconds']:.0f}"
        shown.add_row(one["software"], SCENARIOS[one["scenario"]], *counts, *figures, working)
    return shown


@contextmanager
def starter() -> Iterator[Orders]:
    """What carries orders out: a process of its own, which forks those that start."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.chaos.starting"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def order(one: Order) -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(asdict(one)) + "\n")
        process.stdin.flush()
        answer: dict[str, Any] = json.loads(process.stdout.readline())
        return answer

    try:
        yield order
        process.stdin.close()
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def measured(
    place: Place, orders: Orders, rounds: int, advance: Callable[[], object] = lambda: None
) -> Sequence[Outcome]:
    """The outcome of each scenario. Kills go through all points of a set-up, as far as there are rounds for."""
    outcomes = []
    points = {base: _points(place, orders, base) for base in (0, next_versions.ADDED)}
    for turn, scenario in enumerate(SCENARIOS):
        outcome = Outcome(place.scheme, scenario, place.software)
        for number in range(rounds):
            # From nothing and from an older version in turn; where both make sense.
            base = {"fresh": 0, "upgrade": next_versions.ADDED}.get(
                scenario, next_versions.ADDED * ((number + turn) % 2)
            )
            at = 1 + int(points[base] * (number // 2 + 0.5) / math.ceil(rounds / 2))
            _round(place, orders, base, at, outcome)
            advance()
        outcomes.append(outcome)
    return outcomes


def told(outcome: Outcome) -> list[str]:
    """What is wrong with an outcome, in sentences."""
    where = f"{outcome.software}, {outcome.scenario}"
    sentences = [f"{where}: {failure}" for failure in outcome.failures]
    if outcome.quantile(0.99) >= LIMIT:
        sentences.append(f"{where}: p99 is {outcome.quantile(0.99):.2f} s, of {LIMIT:.0f} s at the most.")
    if outcome.scenario in ("half", "killed") and not outcome.kills:
        sentences.append(f"{where}: no kill has landed midway.")
    return sentences


def _as_json(outcome: Outcome) -> dict[str, Any]:
    figures = {"p50": outcome.quantile(0.5), "p99": outcome.quantile(0.99), "longest": outcome.quantile(1)}
    figures["processor_seconds"] = _quantile(outcome.processor_seconds, 0.5)
    counts = {"starts": len(outcome.seconds), "failed": len(outcome.failures), "kills": outcome.kills}
    names = {"scheme": outcome.scheme, "scenario": outcome.scenario, "software": outcome.software}
    return {**names, **counts, **{name: round(value, 3) for name, value in figures.items()}}


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] if ordered else math.nan


def _points(place: Place, orders: Orders, versions: int) -> int:
    """How many points one process passes while it sets up a database; with made-up versions, one that is older."""
    uri = _prepared(place, orders, versions)
    (start,) = orders(Order(place.scheme, uri, 1, versions=versions))["starts"]
    place.drop(uri)
    assert start["problem"] is None, start
    points: int = start["points"]
    return points


def _prepared(place: Place, orders: Orders, versions: int) -> str:
    """An empty database; or, if there are newer versions, one of the version of today, with rows."""
    uri = place.empty()
    if versions:
        (start,) = orders(Order(place.scheme, uri, 1, runs=OLD_RUNS))["starts"]
        assert start["problem"] is None, start
    return uri


def _round(place: Place, orders: Orders, versions: int, at: int, outcome: Outcome) -> None:
    uri = _prepared(place, orders, versions)
    stop_at = at if outcome.scenario in ("half", "killed") else None
    if outcome.scenario == "half":
        outcome.kills += orders(Order(place.scheme, uri, 0, versions=versions, stop_at=stop_at))["landed"]
        stop_at = None
    answer = orders(Order(place.scheme, uri, NUMBER, versions=versions, stop_at=stop_at))
    outcome.kills += answer.get("landed", False)
    opened = [start for start in answer["starts"] if "seconds" in start]
    outcome.seconds += [start["seconds"] for start in opened]
    outcome.processor_seconds += [start["processor_seconds"] for start in opened]
    outcome.failures += [start["problem"] for start in answer["starts"] if start["problem"]]
    old = OLD_RUNS if versions else 0
    outcome.failures += _wrong(place.found(uri, noted=versions > 0), 1 + versions, old, at)
    place.drop(uri)


def _wrong(found: dict[str, Any], version: int, old: int, at: int) -> list[str]:
    expected = [(version, version)]  # the newest of either is not compatible with those before it
    wrong = [*found["wrong"]]
    if [*map(tuple, found["versions"])] != expected:
        wrong.append(f"{found['versions']} is recorded, not {expected}")
    if found["runs"] != old + NUMBER:
        wrong.append(f"there are {found['runs']} runs, not {old + NUMBER}")
    if found["noted"] < old:
        wrong.append(f"{found['noted']} old rows were migrated, not {old}")
    return [f"{one} (point {at})" for one in wrong]
