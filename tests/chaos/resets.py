"""Connections are reset, cut, held and delayed under load: nothing acknowledged is lost, doubled or contradicted.

The workers reach their database through a proxy, which breaks a connection when an operation has been sent over it, so
each reset has met something in flight. Whether the server has carried that out, its client cannot know, often enough.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Final

from pymongo import MongoClient
from rich.console import Console
from rich.table import Table

from skeino.persistence import RunRow
from tests.chaos import fleet as fleets
from tests.chaos.fleet import Fleet, Place
from tests.chaos.table import table_of
from tests.servers.proxy import AMBIGUOUS, Fault, Proxy, is_operation, proxy_to, through

SCHEMES = ("postgres", "mongodb")  # SQLite has no connections to reset
LEASE = 10.0
"""Long enough to be renewed in spite of all; `stops` and `restarts` have those that are lost."""

WORKERS: Final = {"postgres": 4, "mongodb": 12}  # PyMongo waits half a second after each reset
PARTS: Final = {"postgres": 0.15, "mongodb": 0.12}
"""How many of the operations are broken."""

FAULTS: Final[dict[Fault, float]] = {
    "unsent": 20,
    "cut": 20,
    "unanswered": 40,
    "torn": 17,
    "late": 2.5,
    "held": 0.5,
}
"""What happens how often."""

LIMITS: Final = {"postgres": 2.0, "mongodb": 10.0}
"""Seconds that an operation may take; less, on PostgreSQL, than a connection is held."""

ORPHANED: Final = 3
"""Seconds after which MongoDB aborts a transaction whose client has gone, instead of 60: what waits for its documents
would be refused meanwhile."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 10_000, SCHEMES)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return {**fleets.on_each(arguments, console, reset, SCHEMES), "lease_seconds": LEASE}


def table(result: dict[str, Any]) -> Table:
    return table_of("Connections reset under load", result)


async def reset(fleet: Fleet, times: int, workers: int | None = None) -> dict[str, Any]:
    """Let workers work until so many of their connections were reset, and look at all that they have said."""
    scheme = fleet.place.scheme
    chance = Chance(scheme, PARTS[scheme])
    if scheme == "mongodb":
        with MongoClient[Any](fleet.place.uri) as client:
            client.admin.command({"setParameter": 1, "transactionLifetimeLimitSeconds": ORPHANED})
    with proxy_to(fleet.place.uri, chance) as proxy:
        behind = Fleet(_behind(fleet.place, proxy), fleet.store)
        try:
            began = time.monotonic()
            await behind.start(workers or WORKERS[scheme], parallel=8, seconds=(0.0, 0.05))
            chance.breaks = True
            while proxy.resets < times:
                await asyncio.sleep(0.05)
                assert all(one.process.is_alive() for one in behind.all), "a worker has died"
            chance.breaks = False
            seconds = time.monotonic() - began
            await behind.leave()
        finally:
            behind.end()
        return {**_counted(proxy), "seconds": seconds, **_judged(behind, await fleet.all_rows())}


@dataclass
class Chance:
    """Breaks some operations, at random."""

    scheme: str
    part: float
    breaks: bool = False

    def __call__(self, piece: bytes) -> Fault | None:
        if not self.breaks or random.random() > self.part or not is_operation(self.scheme, piece):
            return None
        (fault,) = random.choices([*FAULTS], [*FAULTS.values()])
        return fault


def _behind(place: Place, proxy: Proxy) -> Place:
    return replace(
        place,
        uri=through(proxy.port, place.scheme, place.uri),
        lease=LEASE,
        options={"operation_timeout": LIMITS[place.scheme]},
    )


def _counted(proxy: Proxy) -> dict[str, Any]:
    landed = proxy.landed
    return {
        "resets": proxy.resets,
        "ambiguous": sum(landed[fault] for fault in AMBIGUOUS),
        **{fault: landed[fault] for fault in FAULTS},
    }


def _judged(behind: Fleet, rows: dict[str, RunRow]) -> dict[str, Any]:
    """What the workers have said, compared with what is there."""
    started, ended = set[str](), set[str]()
    for worker in behind.all:
        started |= worker.started.keys()
        ended |= worker.ended.keys()
    attempts = Counter(row["metadata"]["attempt"] for row in rows.values())
    lost = started - rows.keys()
    doubled = [attempt for attempt, number in attempts.items() if number > 1]
    # A worker lets each run that has started succeed, whether it hears of that or not, and no other.
    contradicted = [run_id for run_id, row in rows.items() if row["status"] != _expected(run_id in started)]
    late = [run_id for run_id, row in rows.items() if row["late_outcome"] is not None]
    failures = [f"the run {run_id} had started, and has no row" for run_id in lost]
    failures += [f"the attempt {attempt} has several rows" for attempt in doubled]
    failures += [f"the run {one} is {rows[one]['status']} {rows[one]['error']}" for one in contradicted]
    failures += [f"the end of run {run_id} was taken for late" for run_id in late]
    failures += [f"a worker has not left: {worker.worker_id}" for worker in behind.all if not worker.has_left]
    return {
        "runs": len(rows),
        "acknowledged_starts": len(started),
        "acknowledged_ends": len(ended),
        "refused": sum(len(worker.failures) for worker in behind.all),
        "refused_and_recorded": len(rows.keys() - started),
        "lost": len(lost),
        "doubled": len(doubled),
        "contradicted": len(contradicted),
        "taken_for_late": len(late),
        "failures": failures,
    }


def _expected(has_started: bool) -> str:
    return "success" if has_started else "error"
