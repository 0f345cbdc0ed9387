"""The memory of a server's process: idle, under load, after it, and what each run that is under way needs.

Of `/proc`, so on Linux only. A way is started anew for each round, and goes through the same each time.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import load
from benchmarks.servers import Place
from benchmarks.throughput import Effort
from benchmarks.uvicorns import Served, Way, served
from tests.servers.process import ServerUnavailableError

AT_ONCE = 32
WAYS = {
    "bare": "the server and Starlette",
    "untracked": "with LangGraph and `InMemorySaver`",
    "memory": "with skeino, scheme `memory`",
    "sqlite": "with skeino, scheme `sqlite`",
    "postgres": "with skeino, scheme `postgres`",
    "mongodb": "with skeino, scheme `mongodb`",
}
"""What is in the process."""


def can_be_read() -> bool:
    return Path("/proc/self/smaps_rollup").exists()


async def measure(place: Place, effort: Effort, progress: Callable[[float], object]) -> dict[str, Any]:
    """The figures of one place; `progress` is told which part of it is done."""
    if not can_be_read():
        raise ServerUnavailableError("The memory of processes is read from /proc, which this machine does not have.")
    ways = {place.scheme: Way("skeino", place.settings(place.empty()))}
    if place.scheme == "memory":
        ways = {"bare": Way("bare"), "untracked": Way("untracked"), **ways}
    figures: dict[str, Any] = {}
    for key, way in ways.items():
        rounds = []
        for _ in range(effort.rounds):
            with served({key: way}) as servers:
                rounds.append(await asyncio.to_thread(life, servers[key], way, effort.at_most))
            progress(1 / (len(ways) * effort.rounds))
        figures[key] = {
            name: {"median": round(statistics.median(one[name] for one in rounds), 2)} for name in rounds[0]
        }
    return {"database": place.version, "ways": figures}


def life(server: Served, way: Way, size: int) -> dict[str, float]:
    """What is measured of a server, in megabytes: so many requests are under way, and then as many 32 at once."""
    found = {f"{name}, idle": megabytes for name, megabytes in _memory(server.pid).items()}
    path = "/ok" if way.name == "bare" else "/graph"
    with load.Client(server, AT_ONCE) as client:
        client.begin(path)  # what is imported and made at first
        client.finish()
        found["each under way, kB"] = 1024 * _each_under_way(server, client, size // 2)
        _forget_the_most(server.pid)
        more = iter(range(size - AT_ONCE))
        client.begin(path)
        client.finish(path, lambda: next(more, None) is not None)
        client.get("/clock/settled")
        found["resident, most"] = _most(server.pid)
        client.get("/clock/renewed")
    found |= {f"{name}, after": megabytes for name, megabytes in _memory(server.pid).items()}
    return found


def _each_under_way(server: Served, clock: load.Client, size: int) -> float:
    """The megabytes of one of so many, above as many others, which have filled what was free."""
    with load.Client(server, size) as others, load.Client(server, size) as client:
        held = []
        for number, one in enumerate((others, client), 1):
            one.begin("/held")
            deadline = time.monotonic() + load.PATIENCE
            while int(clock.get("/clock/held")) < number * size:
                assert time.monotonic() < deadline, "not all requests have begun"
                time.sleep(0.02)
            held.append(_memory(server.pid)["private"])
        clock.get("/clock/release")
        others.finish()
        client.finish()
        clock.get("/clock/settled")
    return (held[1] - held[0]) / size


def _memory(pid: int) -> dict[str, float]:
    """In megabytes: resident; its share of it, where others have the same pages; and what is its own alone."""
    kilobytes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size, *_ = line.split()
        kilobytes[name.rstrip(":")] = int(size)
    return {
        "resident": kilobytes["Rss"] / 1024,
        "share": kilobytes["Pss"] / 1024,
        "private": (kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]) / 1024,
    }


def _forget_the_most(pid: int) -> None:
    """https://docs.kernel.org/filesystems/proc.html: 5 resets the peak of the resident memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _most(pid: int) -> float:
    (line,) = (one for one in Path(f"/proc/{pid}/status").read_text().splitlines() if one.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def table(schemes: dict[str, Any]) -> str:
    """The figures as Markdown."""
    figures = {way: found for result in schemes.values() for way, found in result["ways"].items()}
    lines = [
        "| the process | idle, MB | its share, MB | most under load, MB | after it, MB | each run under way, kB |",
        "|---|---|---|---|---|---|",
    ]
    for way, name in WAYS.items():
        if way in figures:
            columns = ("resident, idle", "share, idle", "resident, most", "resident, after")
            cells = [f"{figures[way][column]['median']:.0f}" for column in columns]
            lines.append(f"| {name} | {' | '.join(cells)} | {figures[way]['each under way, kB']['median']:.1f} |")
    return "\n".join(lines)
