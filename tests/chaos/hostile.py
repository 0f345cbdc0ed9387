"""Hostile input, thrown at an application, at the stores and at the savers; secrets in it must never be seen again.

Half of it are requests to an application behind `RunMiddleware`, some over sockets to a real uvicorn; the other half
are calls of the store and of the saver, in a run of an owner or in none. A failure names its input by seed and number:
`--only NUMBER` repeats it.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

from rich.console import Console
from rich.table import Table

from skeino import SkeinoSettings
from skeino.errors import ThreadNotFoundError
from skeino.runs import new_id
from skeino_asgi import RunLogFilter, RunMiddleware, RunTracker
from tests.asgi.live_server import served
from tests.chaos import hostile_app, hostile_calls
from tests.chaos import hostile_inputs as inputs
from tests.chaos.bench import ALL_SCHEMES, empty_database, new_database, rows_as_text
from tests.chaos.hostile_inputs import CANARY

AT_ONCE: Final = 16
ROUND: Final = 5000
"""Inputs after which the rows are looked at, and deleted: searches would take the longer, the more there are."""

PATIENCE: Final = 30.0
VICTIM: Final = "victim"
SECRET: Final = "what the victim said"
TRACES: Final = (CANARY, CANARY.replace("-", "_"), "s3cr3t")


@dataclass
class Result:
    """Of one backend."""

    inputs: int = 0
    seconds: float = 0.0
    answers: Counter[str] = field(default_factory=Counter)
    """What became of them: a status, an error's class, `done`."""
    log_lines: int = 0
    rows: int = 0
    failures: list[str] = field(default_factory=list)


class Target:
    """An application and its two halves, open on this event loop, and what was said of them in the log."""

    def __init__(self, scheme: str, uri: str | None, seed: int) -> None:
        settings = SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=uri, lease_seconds=0)
        self.scheme, self.uri, self.seed = scheme, uri, seed
        self.tracker = RunTracker(settings)
        self.app = RunMiddleware(
            hostile_app.application,
            tracker=self.tracker,
            thread_path="/threads/{thread_id}",
            owner=lambda connection: connection.headers.get("x-owner"),
        )
        self.address: tuple[str, int] | None = None
        self.result = Result()

    async def prepare(self) -> None:
        """Nothing is there, but what the victim said."""
        empty_database(self.scheme, self.uri)
        await self.tracker.persistence.checkpointer.adelete_thread(VICTIM)
        async with self.tracker.run(thread_id=VICTIM, owner=VICTIM) as run:
            graph = hostile_app.graph_of(self.tracker.checkpointer)
            await graph.ainvoke({"said": [SECRET]}, run.config)

    async def attack(self, number: int) -> None:
        """Try one input; whatever is wrong with the answer is a failure, with the input's number."""
        dice = Random(f"{self.seed}/{number}")
        kind = dice.random()
        attacks: tuple[tuple[float, str, Callable[[Random, int], Awaitable[str]]], ...] = (
            (0.5, "request", self._request),
            (0.55, "socket", self._over_a_socket if self.address else self._request),
            (0.78, "store", self._store),
            (1.0, "saver", self._saver),
        )
        name, attempt = next((name, attempt) for share, name, attempt in attacks if kind < share)
        self.result.inputs += 1
        try:
            async with asyncio.timeout(PATIENCE):
                answer = await attempt(dice, number)
            self.result.answers[f"{name}: {answer}"] += 1
        except Exception as exc:
            told = "".join(traceback.format_exception(exc))[-1500:]
            self.result.failures.append(f"{self.scheme}, {name}, --seed {self.seed} --only {number}: {told}")

    # ── Requests ─────────────────────────────────────────────────────────────────────────────────────────

    async def _request(self, dice: Random, number: int) -> str:
        scope, body = hostile_app.request(dice, number)
        scope["state"] = {}
        sent: list[dict[str, Any]] = []
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            return next(messages, {"type": "http.disconnect"})

        async def send(message: Any) -> None:
            sent.append(message)

        do = dict(scope["headers"])[b"x-do"].decode()
        try:
            await self.app(scope, receive, send)
        except Exception as exc:
            if do in hostile_app.RAISING and getattr(exc, "is_hostile", False):
                return "raised by the application"
            raise
        start = sent[0]
        assert start["type"] == "http.response.start"
        assert start["status"] < 500, f"it answered {start['status']}: {sent[1:]}"
        for name, value in start["headers"]:
            assert not set(name + value) & set(b"\r\n\x00"), f"a header with a line's end: {value!r}"
        _refuse_traces(repr(sent), "the response")
        return str(start["status"])

    async def _over_a_socket(self, dice: Random, number: int) -> str:
        """Bytes, which are HTTP or nearly."""
        scope, body = hostile_app.request(dice, number)
        assert self.address is not None
        head = [f"{scope['method']} ".encode() + _target(dice, scope["path"]) + b" HTTP/1.1"]
        head += [name + b": " + value for name, value in scope["headers"] if dice.random() < 0.95]
        size = len(body) if dice.random() < 0.95 else dice.choice((0, -1, 10**20))
        head += [f"content-length: {size}".encode(), b"connection: close"]
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            writer.write(b"\r\n".join(head) + b"\r\n\r\n" + (body if size == len(body) else b""))
            writer.write_eof()
            answer = await reader.read()
        except OSError:
            return "closed"
        finally:
            writer.close()
        _refuse_traces(answer.decode("latin-1"), "the response")
        if not answer:
            return "closed"  # by uvicorn, which does not take it for HTTP
        status = answer.split(b" ", 2)[1].decode("latin-1")
        do = dict(scope["headers"])[b"x-do"].decode()
        assert status < "500" or do in hostile_app.RAISING, f"it answered {status}"
        return status if status < "500" else "raised by the application"

    # ── Calls ────────────────────────────────────────────────────────────────────────────────────────────

    async def _store(self, dice: Random, number: int) -> str:
        answer = await hostile_calls.answered(hostile_calls.of_store(self.tracker.metadata_store, dice, VICTIM))
        _refuse_traces(str(answer), "an answer")
        return answer if isinstance(answer, str) and answer.endswith("Error") else "done"

    async def _saver(self, dice: Random, number: int) -> str:
        if dice.random() < 0.5:
            async with self.tracker.run(owner="mallory"):
                return await self._of_saver(dice, thread_id=VICTIM if dice.random() < 0.3 else inputs.an_id(dice))
        return await self._of_saver(dice, thread_id=inputs.an_id(dice))

    async def _of_saver(self, dice: Random, thread_id: Any) -> str:
        call = hostile_calls.of_saver(self.tracker.checkpointer, dice, thread_id)
        answer = await hostile_calls.answered(call)
        if thread_id == VICTIM and answer == ThreadNotFoundError.__name__:
            return "not found"
        found = answer if isinstance(answer, list) else [answer]
        assert not any(getattr(one, "config", {}).get("configurable", {}).get("thread_id") == VICTIM for one in found)
        return answer if isinstance(answer, str) and answer.endswith("Error") else "done"

    # ── Afterwards ───────────────────────────────────────────────────────────────────────────────────────

    async def look(self) -> None:
        """No secret in any row; no run left on its way; what the victim said is as it was; and all still works."""
        problems = self.result.failures
        deadline = time.monotonic() + PATIENCE
        while left := [run for run in await self._active() if run["worker_id"] != "attacker"]:
            if time.monotonic() > deadline:
                problems.append(f"{self.scheme}: {len(left)} runs have not ended")
                break
            await asyncio.sleep(0.05)
        rows = await rows_as_text(self.scheme, self.uri, self.tracker.metadata_store)
        self.result.rows += len(rows)
        problems += [f"{self.scheme}: a secret stands in a row: {row[:1000]}" for row in rows if _has_trace(row)][:5]
        graph = hostile_app.graph_of(self.tracker.checkpointer)
        async with self.tracker.run(owner=VICTIM):
            state = await graph.aget_state({"configurable": {"thread_id": VICTIM}})
        if state.values.get("said") != [SECRET, "answer"]:
            problems.append(f"{self.scheme}: the victim's state is {state.values}")
        async with self.tracker.run(thread_id=new_id()) as run:
            answer = await graph.ainvoke({"said": ["hello"]}, run.config)
        row = await self.tracker.metadata_store.get_run(run.run_id)
        if answer["said"] != ["hello", "answer"] or row is None or row["status"] != "success":
            problems.append(f"{self.scheme}: it does not work any more: {answer}, {row}")

    async def _active(self) -> list[Any]:
        return [*await self.tracker.metadata_store.search_runs(status=["pending", "running"], limit=1000)]


async def assault(scheme: str, uri: str | None, numbers: range, seed: int, *, sockets: bool = True) -> Result:
    """Throw these inputs at the backend, which is emptied first."""
    target = Target(scheme, uri, seed)
    begun = time.monotonic()
    with _log() as lines, _served(target, sockets):
        async with target.tracker.lifespan():
            for first in range(0, len(numbers), ROUND):
                await target.prepare()
                pending = iter(numbers[first : first + ROUND])

                async def attacker(pending: Iterator[int] = pending) -> None:
                    for number in pending:
                        await target.attack(number)

                await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
                await target.look()
    result = target.result
    result.seconds = round(time.monotonic() - begun, 1)
    result.log_lines = len(lines)
    result.failures += [f"{scheme}: a secret stands in the log: {line[:1000]}" for line in lines if _has_trace(line)][
        :5
    ]
    forged = [line for line in lines if any(one in line for one in "\r\n\x1b\x00\u2028\u202e") or _words(line) != 4]
    result.failures += [f"{scheme}: a line of the log is more than one: {line[:300]!r}" for line in forged[:5]]
    return result


@contextmanager
def _served(target: Target, sockets: bool) -> Iterator[None]:
    if not sockets:
        yield
        return
    with served(target.app) as url:
        place = urlsplit(url)
        target.address = (str(place.hostname), int(place.port or 0))
        yield


@contextmanager
def _log() -> Iterator[list[str]]:
    """All lines of the log, but uvicorn's, which has the application's own exceptions."""
    lines: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if not record.name.startswith("uvicorn"):
                lines.append(self.format(record))

    handler = Keeping()
    handler.addFilter(RunLogFilter())
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(thread_id)s %(request_id)s\t%(message)s"))
    root, names = logging.getLogger(), ("skeino", "an.application")
    root.addHandler(handler)
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _words(line: str) -> int:
    """Before the message: a thread's id that reads as more than one can pass for a level, or for another run."""
    return len(line.partition("\t")[0].split(" "))


def _has_trace(text: str) -> bool:
    return any(trace in text for trace in TRACES)


def _refuse_traces(text: str, where: str) -> None:
    assert not _has_trace(text), f"a secret stands in {where}: {text[:600]!r}"


def _target(dice: Random, path: str) -> bytes:
    if dice.random() < 0.5:
        return b"".join(b"%%%02x" % byte for byte in path.encode("utf-8", "surrogatepass")) or b"/"
    return path.encode("utf-8", "surrogatepass")[:2000]


# ── `python -m tests.chaos hostile` ──────────────────────────────────────────────────────────────────────────


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each backend (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="makes the same inputs again (default: 1)")
    parser.add_argument("--only", type=int, help="the input of this number alone")
    parser.add_argument("--scheme", action="append", choices=ALL_SCHEMES, help="only on this; may be given repeatedly")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    numbers = range(arguments.count) if arguments.only is None else range(arguments.only, arguments.only + 1)
    schemes: dict[str, Any] = {}
    failures: list[str] = []
    for scheme in arguments.scheme or ALL_SCHEMES:
        with console.status(f"hostile, {scheme}"), new_database(scheme) as uri:
            result = asyncio.run(assault(scheme, uri, numbers, arguments.seed))
        failures += result.failures
        schemes[scheme] = {
            "inputs": result.inputs,
            "seconds": result.seconds,
            "failures": len(result.failures),
            "rows_looked_at": result.rows,
            "log_lines_looked_at": result.log_lines,
            "answers": dict(result.answers.most_common()),
        }
    return {"harness": "hostile", "seed": arguments.seed, "schemes": schemes, "failures": failures[:50]}


def table(result: dict[str, Any]) -> Table:
    names = ("inputs", "seconds", "rows_looked_at", "log_lines_looked_at", "failures")
    shown = Table("backend", *(name.replace("_", " ") for name in names), title=f"Hostile input, seed {result['seed']}")
    for scheme, figures in result["schemes"].items():
        shown.add_row(scheme, *(f"{math.floor(figures[name]):,}" for name in names))
    return shown
