"""Run as a script: a process that has imported all, and forks processes that open a database at one moment.

It reads orders, a line of JSON each, and answers with one. The imports, which take most of a start's time and are
nobody's database's business, are done before; what is timed is `open_persistence`, from one common gun.
"""

import asyncio
import gc
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Event
from typing import Any

from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from skeino.runs import new_id
from tests.chaos import next_versions
from tests.chaos.failpoints import Failpoints

LIMIT = 60.0
AHEAD = 0.15  # seconds that the others run into a victim which has stopped, before it is killed

context = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Order:
    """Who is to start."""

    scheme: str
    uri: str
    number: int
    versions: int = 0
    """How many made-up versions the code knows besides the real ones."""
    stop_at: int | None = None
    """A victim goes first, stops at this point, and is killed while the others start."""
    runs: int = 1
    """How many rows each process writes when it has opened."""


def main() -> None:
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        print(json.dumps(_carried_out(Order(**json.loads(line)))), flush=True)


def _carried_out(order: Order) -> dict[str, Any]:
    gun, started = context.Event(), context.Value("d", 0.0)
    answer: dict[str, Any] = {}
    victim = None
    if order.stop_at is not None:
        victim_gun = context.Event()
        victim_gun.set()
        victim = _forked(order, victim_gun, context.Value("d", 0.0), order.stop_at)
        told: Any = victim[1].recv() if victim[1].poll(LIMIT) else "nothing"
        answer["landed"] = told == "stopped"
    children = [_forked(order, gun, started, None) for _ in range(order.number)]
    for _, reader in children:
        reader.recv()  # it is ready
    started.value = time.monotonic()
    gun.set()
    if victim is not None:
        time.sleep(AHEAD if children else 0)
        victim[0].kill()
        victim[0].join()
    waiting = {reader: process for process, reader in children}
    starts: list[dict[str, Any]] = []
    while waiting:
        ready = wait([*waiting], started.value + LIMIT - time.monotonic())
        if not ready:
            break
        for reader in ready:  # type: ignore[assignment]
            assert isinstance(reader, Connection)
            try:
                starts.append(reader.recv())
            except EOFError:
                starts.append({"problem": "The process died."})
            waiting.pop(reader).join()
    for process in waiting.values():
        process.kill()
        process.join()
        starts.append({"problem": f"It had not opened after {LIMIT:.0f} s."})
    return {**answer, "starts": starts}


def _forked(order: Order, gun: Event, started: Any, stop_at: int | None) -> tuple[Any, Connection]:
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_start, args=(order, gun, started, stop_at, writer), daemon=True)
    process.start()
    writer.close()
    return process, reader


def _start(order: Order, gun: Event, started: Any, stop_at: int | None, answers: Connection) -> None:
    next_versions.install(order.scheme, order.versions)
    points = None
    if stop_at is not None or order.number == 1:
        points = Failpoints(order.scheme, stop_at, lambda: answers.send("stopped"))
    if stop_at is None:
        answers.send("ready")
    gun.wait()
    answer: dict[str, Any] = {"problem": None}
    try:
        asyncio.run(_open(order, started.value, points, answer))
    except BaseException as exc:
        answer["problem"] = f"{exc!r}, from {exc.__cause__!r}"
    answers.send(answer)


async def _open(order: Order, started: float, points: Failpoints | None, answer: dict[str, Any]) -> None:
    settings = SkeinoSettings(checkpointer_scheme=order.scheme, checkpointer_uri=order.uri)
    async with open_persistence(settings) as persistence:
        answer["seconds"] = time.monotonic() - started
        answer["processor_seconds"] = time.process_time()
        answer["points"] = points.passed if points else None
        for _ in range(order.runs):
            await persistence.metadata_store.start_run(new_id(), worker_id="w", thread_id="shared")
        await persistence.checkpointer.aget_tuple({"configurable": {"thread_id": "shared"}})


if __name__ == "__main__":
    from tests.chaos import starting  # not __main__: children look their functions up by name

    starting.main()
