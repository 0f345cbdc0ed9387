"""Event loops stand still for three times a lease: their processes are not taken for dead."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos import fleet as fleets
from tests.chaos.fleet import LEASE, Fleet, Worker, until
from tests.chaos.table import table_of

AT_ONCE = 4
RUNS = 5
BLOCKED = 3 * LEASE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 20)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return fleets.on_each(arguments, console, block)


def table(result: dict[str, Any]) -> Table:
    return table_of(f"Event loops blocked for {BLOCKED:g} s", result)


async def block(fleet: Fleet, times: int) -> dict[str, Any]:
    """Block some workers' event loops, one of them by computing, while two others look for the dead."""
    await fleet.start(2)
    workers = await fleet.start(min(AT_ONCE, times), parallel=RUNS, seconds=None)
    await asyncio.sleep(2 * LEASE)
    result: dict[str, Any] = {"blocks": 0, "runs": 0, "taken_for_dead": 0, "failures": []}
    while result["blocks"] < times:
        some = workers[: times - result["blocks"]]
        blocking = enumerate(some)
        await asyncio.gather(
            *(_blocked(fleet, one, "sleep" if number else "compute", result) for number, one in blocking)
        )
        result["blocks"] += len(some)
    await fleet.leave()
    return result


async def _blocked(fleet: Fleet, worker: Worker, how: str, result: dict[str, Any]) -> None:
    await worker.has(RUNS)
    mine = set(worker.active)
    worker.tell(how, BLOCKED)
    worker.tell("finish")
    await asyncio.sleep(BLOCKED)
    if not await until(lambda: mine <= worker.ended.keys(), 10 * LEASE):
        result["failures"].append("a worker whose event loop was blocked did not go on")
    rows = await fleet.rows(mine)
    result["runs"] += len(rows)
    wrong = [row for row in rows.values() if row["status"] != "success"]
    result["taken_for_dead"] += len(wrong)
    result["failures"] += [f"the run {row['run_id']} is {row['status']} {row['error']}" for row in wrong]
