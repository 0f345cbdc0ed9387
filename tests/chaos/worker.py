"""A process that tracks runs all the time, and says which have started and which have ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from skeino import SkeinoError, SkeinoSettings
from skeino_asgi import RunTracker

THREADS = 50


@dataclass(frozen=True)
class Load:
    """What a worker does."""

    settings: dict[str, Any]
    """Of `SkeinoSettings`."""
    parallel: int = 8
    """Runs at the same time."""
    seconds: tuple[float, float] | None = (0.02, 0.3)
    """How long a run takes; None: until the worker is told to finish it."""


@dataclass
class _Runs:
    load: Load
    events: Connection
    finish: asyncio.Event = field(default_factory=asyncio.Event)
    leaving: bool = False

    def say(self, *event: str) -> None:
        self.events.send(event)  # one small write, which a kill does not cut

    async def go_on(self, tracker: RunTracker) -> None:
        while not self.leaving:
            attempt = {"attempt": secrets.token_hex(8)}
            try:
                async with tracker.run(thread_id=f"t{random.randrange(THREADS)}", metadata=attempt) as run:
                    self.say("started", run.run_id)
                    await self._work()
                self.say("ended", run.run_id)
            except SkeinoError as exc:
                self.say("failed", f"{type(exc).__name__}: {exc}")
                await asyncio.sleep(random.uniform(0.02, 0.1))

    async def _work(self) -> None:
        if self.load.seconds is None:
            await self.finish.wait()
        else:
            await asyncio.sleep(random.uniform(*self.load.seconds))

    def obey(self, order: tuple[Any, ...]) -> None:
        match order:
            case ("finish",):
                self.finish.set()
                self.finish = asyncio.Event()
            case ("leave",):
                self.leaving = True
                self.finish.set()
            case ("sleep", float(seconds)):  # on the event loop
                time.sleep(seconds)
            case ("compute", float(seconds)):
                until = time.monotonic() + seconds
                while time.monotonic() < until:
                    pass
            case _:
                raise AssertionError(order)


class _Said(logging.Handler):
    """Tells the harness what would be in the log."""

    def __init__(self, events: Connection) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._events.send(("logged", record.getMessage()))


def work(load: Load, orders: Connection, events: Connection) -> None:
    """Track runs until told to leave."""
    logging.getLogger("skeino").addHandler(_Said(events))
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it says of each broken connection that it is one
    with contextlib.suppress(BrokenPipeError):  # whoever listened has gone
        asyncio.run(_work(load, orders, events))


def _next_of(orders: Connection) -> tuple[Any, ...]:
    try:
        order: tuple[Any, ...] = orders.recv()
    except EOFError:  # the harness was killed: nobody is left to work for
        os._exit(1)
    return order


async def _work(load: Load, orders: Connection, events: Connection) -> None:
    tracker = RunTracker(SkeinoSettings(**load.settings))
    runs = _Runs(load, events)
    async with tracker.lifespan():
        asyncio.get_running_loop().add_reader(orders.fileno(), lambda: runs.obey(_next_of(orders)))
        runs.say("ready", tracker.openings.here().worker_id)
        await asyncio.gather(*(runs.go_on(tracker) for _ in range(load.parallel)))
    runs.say("left")
