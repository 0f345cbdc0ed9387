"""Runs and graphs where the disk is slower: a commit waits longer for it, and whoever shares commits waits less often.

A disk that is another machine, as clouds have them, keeps a write for good in a millisecond or so. Here a library that
is preloaded into the databases (`slow_disk.c`, made by the machine's C compiler) lets each `fsync` take longer. Each
disk has a process of its own, `python -m benchmarks.disk SCHEME ROUNDS SECONDS FOLDER`, which prints its figures.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import runs, savers
from benchmarks.page import rate, times
from benchmarks.servers import Place, flush_in_microseconds, place_of
from benchmarks.throughput import Effort, measured
from tests.servers.process import ServerUnavailableError, new_directory

MORE = (0, 500, 2000)
"""Microseconds that a synchronisation takes longer."""

AT_ONCE = 32


def can_be_made() -> bool:
    """Whether this machine can make and preload the library."""
    return sys.platform == "linux" and shutil.which("cc") is not None


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one database on each of the disks; `progress` is told which part of it is done."""
    if not can_be_made():
        raise ServerUnavailableError("A slower disk is made on Linux, by a C compiler that is called cc.")
    folder = new_directory("slow-disk", place.folder)
    try:
        library = _library(folder)
        disks = {}
        several = MORE if effort.rows > 1_000 else MORE[:2]
        for more in several:
            disks[str(more)] = await asyncio.to_thread(_on_a_disk, place.scheme, effort, folder, library, more)
            progress(1 / len(several))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {"database": place.version, "disks": disks}


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    disks = [*next(iter(schemes.values()))["disks"]]
    headings = [f"{'this disk' if more == '0' else f'{int(more) / 1000:g} ms longer'} | skeino does" for more in disks]
    lines = [f"| 32 at once | way | {' | '.join(headings)} |", "|---|---|" + "---|---|" * len(disks)]
    for scheme, result in schemes.items():
        names = {"runs": runs.WAYS[scheme, runs.BEST[scheme]], "ainvoke": savers.STOCK[scheme]}
        for what, other in names.items():
            for way, name in (("skeino", "skeino"), ("other", other)):
                cells = [
                    f"{rate(disk[what][way])} | {times(disk[what]['skeino'], disk[what][way])}"
                    for disk in result["disks"].values()
                ]
                lines.append(f"| `{scheme}`, {what}/s | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _library(folder: Path) -> Path:
    library = folder / "slow_disk.so"
    source = Path(__file__).with_name("slow_disk.c")
    made = subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise ServerUnavailableError(f"The C compiler did not make {source.name}: {made.stderr.strip()}")
    return library


def _on_a_disk(scheme: str, effort: Effort, folder: Path, library: Path, more: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.disk", scheme, str(effort.rounds), str(effort.seconds), str(folder)]
    slower = {"LD_PRELOAD": str(library), "SLOW_DISK_US": str(more)}
    done = subprocess.run(
        command,
        cwd=Path(__file__).parents[1],
        env={**os.environ, **slower},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"On a disk that takes {more} µs longer, nothing was measured: {done.stderr.strip()}")
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


async def _figures(place: Place, effort: Effort) -> dict[str, Any]:
    """Of this process's disk."""
    figures: dict[str, Any] = {}
    async with runs.skeinos(place) as ours, runs.PLAIN[place.scheme](place) as plain:
        figures["runs"] = await _measured({"skeino": ours, "other": plain[runs.BEST[place.scheme]]}, effort)
    async with savers.both(place) as (ours, stock):
        of_graphs = {"skeino": savers.ainvoke(ours.checkpointer, savers.in_runs(ours)), "other": savers.ainvoke(stock)}
        figures["ainvoke"] = await _measured(of_graphs, effort)
    return figures


async def _measured(variants: dict[str, Any], effort: Effort) -> dict[str, Any]:
    found = await measured(variants, at_once=(AT_ONCE,), effort=effort, after_turn=lambda: None)
    return {way: figures[str(AT_ONCE)] for way, figures in found.items()}


def main(scheme: str, rounds: str, seconds: str, folder: str) -> None:
    with place_of(scheme, Path(folder)) as place:
        figures = asyncio.run(_figures(place, Effort(int(rounds), float(seconds))))
    print(json.dumps({"flush_in_microseconds": flush_in_microseconds(Path(folder)), **figures}))


if __name__ == "__main__":
    main(*sys.argv[1:])
