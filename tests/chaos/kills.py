"""Workers are killed under load: their runs end soon, and what they had acknowledged is there."""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos import fleet as fleets
from tests.chaos.fleet import LEASE, Fleet, Worker, is_lost, somewhere
from tests.chaos.table import table_of

KEEPERS = 2
VICTIMS = 3
SOON = LEASE + 2.0
"""Seconds after which no run of a killed worker may be active."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fleets.add_arguments(parser, 500)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    return fleets.on_each(arguments, console, kill)


def table(result: dict[str, Any]) -> Table:
    return table_of("Workers killed under load", result)


async def kill(fleet: Fleet, times: int) -> dict[str, Any]:
    """Kill one of the victims after the other, each replaced, and look at its runs later."""
    keepers = await fleet.start(KEEPERS)
    victims = await fleet.start(VICTIMS)
    await asyncio.sleep(2 * LEASE)  # from here on the keepers may count others as dead
    result = _Result()
    checks = []
    for _ in range(times):
        await asyncio.sleep(somewhere(0.05, 0.4))
        victim = victims.pop(random.randrange(len(victims)))
        await victim.has(1)
        await victim.kill()
        checks.append(asyncio.create_task(result.look_at(fleet, victim, time.time())))
        victims += await fleet.start()
    await asyncio.gather(*checks)
    await fleet.leave()
    living = [*keepers, *victims]
    for worker in living:
        await result.look_at_living(fleet, worker)
    left = await fleet.active_of(fleet.all)
    result.failures += [f"the run {row['run_id']} is active when all have left" for row in left]
    return {
        "kills": times,
        "runs": sum(len(one.started) for one in fleet.all),
        "active_at_their_kill": result.active,
        "ended_as_lost": result.lost,
        "active_4_s_later": result.late,
        "acknowledged_and_missing": result.missing,
        "acknowledged_and_contradicted": result.contradicted,
        "living_taken_for_dead": result.mistaken,
        "slowest_seconds": result.slowest,
        "heartbeats_that_failed": sum(one.unsteady for one in fleet.all),
        "failures": result.failures,
    }


class _Result:
    def __init__(self) -> None:
        self.active = self.lost = self.late = self.missing = self.contradicted = self.mistaken = 0
        self.slowest = 0.0
        self.failures: list[str] = []

    async def look_at(self, fleet: Fleet, victim: Worker, killed_at: float) -> None:
        await asyncio.sleep(killed_at + SOON - time.time())
        late = await fleet.active_of([victim])
        self.late += len(late)
        self.failures += [f"the run {row['run_id']} is still active" for row in late]
        self.active += len(victim.active)
        for row in await self._acknowledged(fleet, victim):
            if is_lost(row):
                assert row["finished_at"] is not None
                self.lost += 1
                self.slowest = max(self.slowest, row["finished_at"].timestamp() - killed_at)

    async def look_at_living(self, fleet: Fleet, worker: Worker) -> None:
        rows = await self._acknowledged(fleet, worker)
        mistaken = [row["run_id"] for row in rows if is_lost(row)]
        self.mistaken += len(mistaken)
        self.failures += [f"the run {run_id} of a living worker was ended" for run_id in mistaken]

    async def _acknowledged(self, fleet: Fleet, worker: Worker) -> list[Any]:
        rows = await fleet.rows(worker.started)
        missing = worker.started.keys() - rows.keys()
        contradicted = [run_id for run_id in worker.ended if run_id in rows and rows[run_id]["status"] != "success"]
        self.missing += len(missing)
        self.contradicted += len(contradicted)
        self.failures += [f"the run {run_id} had started, and has no row" for run_id in missing]
        self.failures += [f"the run {one} had ended, and is {rows[one]['status']}" for one in contradicted]
        return list(rows.values())
