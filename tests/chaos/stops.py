"""Workers are stopped for longer than their lease and then go on: what they still say of their runs is too late."""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos import fleet as fleets
from tests.chaos.fleet import LEASE, Fleet, Worker, is_lost, until
from tests.chaos.table import table_of

AT_ONCE = 5
RUNS = 6


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 50)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return fleets.on_each(arguments, console, stop)


def table(result: dict[str, Any]) -> Table:
    return table_of("Workers stopped (SIGSTOP) for longer than their lease", result)


async def stop(fleet: Fleet, times: int) -> dict[str, Any]:
    """Stop some workers, let them go on when their runs were ended by others, and finish those at that moment."""
    await fleet.start(2)
    workers = await fleet.start(min(AT_ONCE, times), parallel=RUNS, seconds=None)
    await asyncio.sleep(2 * LEASE)
    result: dict[str, Any] = {
        "stops": 0,
        "runs": 0,
        "late_ends_accepted": 0,
        "late_ends_kept_aside": 0,
        "runs_afterwards": 0,
        "failures": [],
    }
    while result["stops"] < times:
        some = workers[: times - result["stops"]]
        await asyncio.gather(*(_stopped(fleet, worker, result) for worker in some))
        result["stops"] += len(some)
    await fleet.leave()
    left = await fleet.active_of(fleet.all)
    result["failures"] += [f"the run {row['run_id']} is active when all have left" for row in left]
    return result


async def _stopped(fleet: Fleet, worker: Worker, result: dict[str, Any]) -> None:
    await worker.has(RUNS)
    mine = set(worker.active)
    worker.signal(signal.SIGSTOP)

    async def all_lost() -> bool:
        return all(is_lost(row) for row in (await fleet.rows(mine)).values())

    if not await until(all_lost, 3 * LEASE):
        result["failures"].append("a stopped worker's runs did not end")
    before = await fleet.rows(mine)
    worker.tell("finish")  # what it does first
    worker.signal(signal.SIGCONT)
    if not await until(lambda: mine <= worker.ended.keys(), 10 * LEASE):
        result["failures"].append("a worker that was stopped did not go on")
    after = await fleet.rows(mine)
    accepted = [one for one in mine if {**after[one], "late_outcome": None} != before[one]]
    aside = [one for one in mine if (after[one]["late_outcome"] or {}).get("status") == "success"]
    result["runs"] += len(mine)
    result["late_ends_accepted"] += len(accepted)
    result["late_ends_kept_aside"] += len(aside)
    result["failures"] += [f"the late end of run {run_id} was accepted" for run_id in accepted]
    result["failures"] += [f"the late end of run {run_id} is gone" for run_id in mine.difference(aside)]
    await _works_again(fleet, worker, result)


async def _works_again(fleet: Fleet, worker: Worker, result: dict[str, Any]) -> None:
    """Runs that start some time after it has gone on end as they should."""
    await asyncio.sleep(LEASE)
    worker.tell("finish")
    await until(lambda: not worker.active, 1)
    await worker.has(RUNS)
    new = set(worker.active)
    await asyncio.sleep(1.5 * LEASE)
    worker.tell("finish")
    await until(lambda: new <= worker.ended.keys(), 10 * LEASE)
    rows = await fleet.rows(new)
    result["runs_afterwards"] += len(rows)
    wrong = [row for row in rows.values() if row["status"] != "success"]
    result["failures"] += [f"the run {row['run_id']} afterwards is {row['status']} {row['error']}" for row in wrong]
