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

from langgraph.checkpoint.base import empty_checkpoint
from rich.console import Console
from rich.table import Table

from skeino import SkeinoSettings
from skeino.errors import ThreadNotFoundError
from skeino.runs import new_id
from skeino.testing.making import ending, started
from skeino_asgi import RunLogFilter, RunMiddleware, RunTracker
from tests.asgi.live_server import served
from tests.chaos import hostile_app
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

    # ── The store ────────────────────────────────────────────────────────────────────────────────────────

    async def _store(self, dice: Random, number: int) -> str:
        store: Any = self.tracker.metadata_store
        an_id, mapping, value = inputs.an_id(dice), inputs.mapping(dice), inputs.value(dice)
        owner = dice.choice(("ann", "mallory", None, an_id))
        run_id = dice.choice((new_id(), an_id))
        calls: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: store.start_run(
                run_id,
                worker_id="attacker",
                thread_id=an_id,
                owner=owner,
                metadata=mapping,
                kwargs=inputs.mapping(dice),
            ),
            lambda: store.attach_thread(run_id, an_id, owner=owner),
            lambda: self._finish(dice, owner, mapping, value),
            lambda: store.interrupt_runs(an_id, {"code": "c", "type": None, "message": value}),
            lambda: store.claim_thread(run_id, VICTIM if dice.random() < 0.2 else an_id, owner="mallory"),
            lambda: store.get_queue(an_id),
            lambda: store.change_queue(
                an_id, [run_id], dice.choice(([], [run_id], [value])), takes=dice.random() < 0.5
            ),
            lambda: _done(store.release_thread(run_id, an_id)),
            lambda: store.get_run(run_id, owner=owner),
            lambda: store.search_runs(**inputs.search(dice)),
            lambda: store.search_threads(**inputs.search(dice)),
            lambda: store.update_run(run_id, metadata=mapping, owner=owner),
            lambda: self._created(an_id, owner, mapping),
            lambda: store.get_thread(VICTIM if dice.random() < 0.2 else an_id, owner="mallory"),
            lambda: store.update_thread(an_id, metadata=mapping, config=mapping, ttl=value, owner="mallory"),
            lambda: store.delete_thread(VICTIM if dice.random() < 0.2 else an_id, force=True, owner="mallory"),
            lambda: store.restore_threads([value, mapping]),
            lambda: store.restore_runs([mapping]),
        )
        answer = await _answered(dice.choice(calls))
        assert SECRET not in str(answer)
        return answer if isinstance(answer, str) and answer.endswith("Error") else "done"

    async def _finish(self, dice: Random, owner: Any, metadata: Any, value: Any) -> None:
        store = self.tracker.metadata_store
        run_id = await started(store, dice.choice((None, "t1")), worker_id="attacker", owner="ann")
        field_name = dice.choice([*ending(run_id)])
        finish: Any = {**ending(run_id, worker_id="attacker", metadata=metadata), field_name: value}
        await store.finish_run(finish)

    async def _created(self, thread_id: Any, owner: Any, metadata: Any) -> None:
        """What is accepted is kept as it is."""
        made = await self.tracker.metadata_store.create_thread(thread_id, owner=owner, metadata=metadata)
        found = await self.tracker.metadata_store.get_thread(thread_id)
        if found is not None:  # another may have deleted it meanwhile, and made it again
            assert found["created_at"] != made["created_at"] or found["thread_id"] == thread_id

    # ── The saver ────────────────────────────────────────────────────────────────────────────────────────

    async def _saver(self, dice: Random, number: int) -> str:
        if dice.random() < 0.5:
            async with self.tracker.run(owner="mallory"):
                return await self._of_saver(dice, thread_id=VICTIM if dice.random() < 0.3 else inputs.an_id(dice))
        return await self._of_saver(dice, thread_id=inputs.an_id(dice))

    async def _of_saver(self, dice: Random, thread_id: Any) -> str:
        saver: Any = self.tracker.checkpointer
        config: Any = {"configurable": {**inputs.configurable(dice), "thread_id": thread_id}}
        if dice.random() < 0.3:
            config["metadata"] = inputs.mapping(dice)
        if dice.random() < 0.02:
            config = inputs.value(dice)
        value = inputs.value(dice)
        metadata = inputs.mapping(dice)
        if isinstance(metadata, dict):  # as LangGraph needs it, which goes on from there
            metadata |= {"source": "loop", "step": 1}
        versions = dict.fromkeys("xy", saver.get_next_version(None, None))
        checkpoint = {**empty_checkpoint(), "channel_values": {"x": value, "y": "fine"}, "channel_versions": versions}
        in_place = (
            {**config, "configurable": {"checkpoint_ns": "", **config["configurable"]}}
            if _is_config(config)
            else config
        )

        async def listed() -> Any:
            before: Any = None if dice.random() < 0.6 else dice.choice((config, value, {"configurable": {}}))
            limit = dice.choice((1, 5, None, inputs.scalar(dice)))
            if isinstance(limit, int) and not 0 <= limit < 100:
                limit = 3
            given = inputs.mapping(dice) if dice.random() < 0.7 else None
            return [one async for one in saver.alist(config, filter=given, before=before, limit=limit)]

        calls: tuple[Callable[[], Awaitable[Any]], ...] = (
            lambda: saver.aget_tuple(config),
            listed,
            lambda: saver.aput(in_place, checkpoint, metadata, versions),
            lambda: saver.aput(in_place, checkpoint, {"source": "loop", "step": 1}, versions),
            lambda: saver.aput_writes(
                in_place, [("x", value)], dice.choice(("task", inputs.text(dice))), inputs.text(dice)
            ),
            lambda: saver.adelete_thread(thread_id),
            lambda: saver.acopy_thread(thread_id, dice.choice((new_id(), inputs.an_id(dice)))),
            lambda: saver.aprune(
                dice.choice(([thread_id], value)), strategy=dice.choice(("keep_latest", "delete", value))
            ),
            lambda: saver.adelete_for_runs(dice.choice(([new_id()], value))),
            lambda: saver.aget_delta_channel_history(config=config, channels=["x"]),
        )
        answer = await _answered(dice.choice(calls))
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


async def _answered(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, or the name of one of skeino's errors, whose sentence repeats nothing; any other is raised."""
    try:
        return await call()
    except Exception as exc:
        known = isinstance(exc, TypeError) and "there is no argument" in str(exc)  # said of a search by another name
        if not known and not hostile_app.is_refusal(exc):
            raise
        _refuse_traces(str(exc), "an error")
        return type(exc).__name__


async def _done(answer: Awaitable[Any]) -> Any:
    return await answer


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
    handler.setFormatter(logging.Formatter("%(name)s %(levelname)s %(thread_id)s %(request_id)s | %(message)s"))
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
    return len(line.partition(" | ")[0].split(" "))


def _has_trace(text: str) -> bool:
    return any(trace in text for trace in TRACES)


def _refuse_traces(text: str, where: str) -> None:
    assert not _has_trace(text), f"a secret stands in {where}: {text[:600]!r}"


def _target(dice: Random, path: str) -> bytes:
    if dice.random() < 0.5:
        return b"".join(b"%%%02x" % byte for byte in path.encode("utf-8", "surrogatepass")) or b"/"
    return path.encode("utf-8", "surrogatepass")[:2000]


def _is_config(config: Any) -> bool:
    return isinstance(config, dict) and isinstance(config.get("configurable"), dict)


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
