"""The database goes away for three times a lease and comes back: nobody is taken for dead who lives."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos import fleet as fleets
from tests.chaos.fleet import LEASE, Fleet, Worker, is_lost, until
from tests.chaos.table import table_of

WORKERS = 4
RUNS = 100
DOWN = 3 * LEASE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 20)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return fleets.on_each(arguments, console, restart)


def table(result: dict[str, Any]) -> Table:
    return table_of(f"Databases away for {DOWN:g} s", result)


async def restart(fleet: Fleet, times: int, workers: int = WORKERS, runs: int = RUNS) -> dict[str, Any]:
    """Hold many runs open over restarts; meanwhile one worker dies each time, and that is noticed.

    One of the living has a clock that is wrong by an hour.
    """
    living = await fleet.start(workers - 1, parallel=runs, seconds=None)
    living += await fleet.start(1, wrong_clock_=fleet.place.scheme != "sqlite", parallel=runs, seconds=None)
    await asyncio.gather(*(worker.has(runs) for worker in living))
    result: dict[str, Any] = {
        "restarts": times,
        "live_runs": workers * runs,
        "living_taken_for_dead": 0,
        "dead_noticed": 0,
        "slowest_to_notice_seconds": 0.0,
        "failures": [],
    }
    mistaken: set[str] = set()
    for _ in range(times):
        await _restarted(fleet, living, result)
        held = set().union(*(worker.active for worker in living))
        mistaken |= {run_id for run_id, row in (await fleet.rows(held)).items() if row["status"] != "running"}
    held = set().union(*(worker.active for worker in living))
    await fleet.leave()
    mistaken |= {run_id for run_id, row in (await fleet.rows(held)).items() if row["status"] != "success"}
    result["living_taken_for_dead"] = len(mistaken)
    result["failures"] += [f"the run {run_id} of a living worker was ended" for run_id in mistaken]
    if len(held) != workers * runs:
        result["failures"].append(f"{len(held)} runs were held over the restarts, not {workers * runs}")
    return result


async def _restarted(fleet: Fleet, living: list[Worker], result: dict[str, Any]) -> None:
    (dying,) = await fleet.start(1, parallel=5, seconds=None)
    await dying.has(5)
    await asyncio.to_thread(fleet.place.go_away)
    died = set(dying.active)
    await dying.kill()
    await asyncio.sleep(DOWN)
    await asyncio.to_thread(fleet.place.come_back)
    back = time.monotonic()

    async def noticed() -> bool:
        return all(is_lost(row) for row in (await fleet.rows(died)).values())

    if await until(lambda: _patiently(noticed), 4 * LEASE):
        result["dead_noticed"] += 1
        result["slowest_to_notice_seconds"] = max(result["slowest_to_notice_seconds"], time.monotonic() - back)
    else:
        result["failures"].append("a worker that died while the database was away was not noticed")
    await asyncio.sleep(LEASE)


async def _patiently(look: Any) -> bool:
    try:
        return bool(await look())
    except Exception:  # it has only just come back
        return False
