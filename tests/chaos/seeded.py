"""Bugs, one at a time, in a copy of the code: each promise's harness notices that it is broken.

First every harness has to pass on a copy without a bug, so that none is caught by one that always fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from tests.chaos.fleet import SCHEMES

ROOT: Final = Path(__file__).parents[2]
COPIED: Final = ("skeino", "skeino_asgi", "tests", "pyproject.toml")
PATIENCE: Final = 600.0
"""Seconds that one harness may take."""


@dataclass(frozen=True)
class Bug:
    """A piece of the code, which stands there once, and what takes its place."""

    name: str
    file: str
    right: str
    wrong: str
    caught_by: str
    """The arguments of `python -m`."""
    says: str
    """What stands in the harness's complaint."""


BUGS: Final = (
    Bug(
        "a late end is accepted",
        "skeino/persistence/postgres/batches.py",
        "WHERE r.run_id = ANY(%(run_id)b::uuid[]) AND {_IS_ACTIVE}",
        "WHERE r.run_id = ANY(%(run_id)b::uuid[])",
        "tests.chaos stops --scheme postgres --times 3",
        "was accepted",
    ),
    Bug(
        "a late end is dropped",
        "skeino/persistence/sqlite/store.py",
        "if ended is None or ended[0] != finish[",
        'if ended is None or finish["status"] or ended[0] != finish[',
        "tests.chaos stops --scheme sqlite --times 3",
        "is gone",
    ),
    Bug(
        "a checkpoint's fence is not looked at",
        "skeino/persistence/postgres/checkpoints.py",
        "WHERE %(fence)s::bigint IS NOT NULL AND NOT EXISTS (SELECT FROM held)",
        "WHERE %(fence)s::bigint IS NOT NULL AND FALSE",
        "pytest -q -x -p no:cacheprovider -m postgres tests/savers/test_claims.py -k worker_that_counts_as_dead",
        "1 failed",
    ),
    Bug(
        "leases are taken from others without having been steady",
        "skeino/persistence/heartbeat.py",
        "return 0.0 if self._since is None else self._clock() - self._since",
        "return 1e6",
        "tests.chaos restarts --scheme postgres --times 2",
        "of a living worker was ended",
    ),
    Bug(
        "leases run out by each process's own clock",
        "skeino/persistence/postgres/leases.py",
        "self._execute(DECLARE_LOST, steady_for",
        'self._execute(DECLARE_LOST.replace("< statement_timestamp()", f"< to_timestamp({time.time()})"), steady_for',
        "tests.chaos restarts --scheme postgres --times 2",
        "of a living worker was ended",
    ),
    Bug(
        "the heartbeat waits for the event loop",
        "skeino/persistence/heartbeat.py",
        "        self._known = known\n",
        "        loop = asyncio.get_running_loop()\n\n"
        "        async def asked() -> Collection[str] | None:\n"
        "            return known()\n\n"
        "        self._known = lambda: asyncio.run_coroutine_threadsafe(asked(), loop).result()\n",
        "tests.chaos blocked --scheme sqlite --times 4",
        "worker_lost",
    ),
    Bug(
        "nobody ends the runs of the dead",
        "skeino/persistence/heartbeat.py",
        "while elapsed() < enough and self._leases.end_runs_of_lost(BATCH) == BATCH:",
        "while False:",
        "tests.chaos kills --scheme sqlite --times 5",
        "active",
    ),
    Bug(
        "a write is acknowledged before it is committed",
        "skeino/persistence/group_commit.py",
        "        self._waiting.append((write, answer))\n",
        "        self._waiting.append((write, loop.create_future()))\n        answer.set_result(True)\n",
        "tests.chaos kills --scheme sqlite --times 40",
        "the run",
    ),
    Bug(
        "what was lost with its connection is taken for not done",
        "skeino/persistence/repeating.py",
        "if not (failure.maybe_done or undone) or time.monotonic() + pause > self._deadline:\n"
        "            failure.maybe_done = self._in_doubt\n",
        "if True:\n            failure.maybe_done = False\n",
        "tests.chaos resets --scheme postgres --times 200",
        "the run",
    ),
    Bug(
        "a start that is tried again is another run",
        "skeino_asgi/row.py",
        "repeated(lambda: store.start_run(run.run_id,",
        'repeated(lambda: store.start_run(__import__("skeino").runs.new_id(),',
        "tests.chaos resets --scheme postgres --times 200",
        "had started, and has no row",
    ),
    Bug(
        "a write that has failed is acknowledged",
        "skeino/persistence/group_commit.py",
        "answers if failure is None else [failure] * size",
        "answers if failure is None else [True] * size",
        "tests.chaos points --scheme sqlite --times 1",
        "the runs are",
    ),
    Bug(
        "whoever asks for a thread has it",
        "skeino/persistence/claims.py",
        "            if not before:\n",
        "            if True:\n",
        "tests.chaos turns --scheme sqlite --times 200 --processes 8",
        "had their turn",
    ),
    Bug(
        "whoever comes last is the next",
        "skeino/persistence/claims.py",
        "wanted, takes = [*alive, me], False",
        "wanted, takes = [*alive[:1], me, *alive[1:]], False",
        "tests.chaos turns --scheme sqlite --times 200 --processes 8",
        "overtaken",
    ),
    Bug(
        "a queue is changed that was another when it was read",
        "skeino/persistence/sqlite/statements.py",
        "WHERE thread_id = :thread_id AND queue = :seen",
        "WHERE thread_id = :thread_id",
        "tests.chaos turns --scheme sqlite --times 200 --processes 8",
        "had their turn",
    ),
    Bug(
        "the run of a client that has left gets no end",
        "skeino_asgi/middleware.py",
        "            opening.finish(run, exchange.outcome(None))\n",
        "            exchange.left or opening.finish(run, exchange.outcome(None))\n",
        "tests.chaos leaving --scheme sqlite --times 200",
        "has not ended",
    ),
    Bug(
        "processes set the schema up beside each other",
        "skeino/persistence/postgres/schema.py",
        "SELECT pg_try_advisory_xact_lock(x'736B65696E6F'::bigint) AS done",
        "SELECT true AS done",
        "tests.chaos cold-starts --scheme postgres --rounds 10",
        "StoreError",
    ),
    Bug(
        "errors keep their secrets",
        "skeino/scrubbing.py",
        "        text = pattern.sub(replacement, text)\n",
        "        pass\n",
        "tests.chaos hostile --scheme sqlite --count 2000",
        "secret",
    ),
    Bug(
        "ids are stored as they come",
        "skeino/validation.py",
        "    if not value.isprintable():  # control characters, NUL, lone surrogates, line separators\n",
        "    if False:\n",
        "tests.chaos hostile --scheme sqlite --count 2000",
        "UnicodeEncodeError",
    ),
    Bug(
        "another owner's run is found",
        "skeino/persistence/sqlite/statements.py",
        'return f"{where} AND owner IS :owner", {**values, "owner": owner}',
        "return where, values",
        "tests.chaos model --scheme sqlite --examples 100",
        "the store answers",
    ),
    Bug(
        "a search forgets where a page begins",
        "skeino/persistence/queries.py",
        'offset=_whole_number(search.get("offset", 0), "offset", 0, MAX_OFFSET),',
        'offset=_whole_number(search.get("offset", 0), "offset", 0, MAX_OFFSET) and 0,',
        "tests.chaos model --scheme sqlite --examples 100",
        "state.search(",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=int, choices=range(1, len(BUGS) + 1), help="the bug of this number alone")
    parser.add_argument("--scheme", action="append", choices=SCHEMES, help="bugs on this only; may be given repeatedly")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    numbers = range(len(BUGS)) if arguments.only is None else [arguments.only - 1]
    schemes = arguments.scheme or SCHEMES
    bugs = [BUGS[number] for number in numbers if any(scheme in BUGS[number].caught_by.split() for scheme in schemes)]
    result: dict[str, Any] = {"bugs": [], "caught": 0, "failures": [] if bugs else ["no such bug"]}
    failures: list[str] = result["failures"]
    for bug in {bug.caught_by: bug for bug in bugs}.values():
        with console.status(f"without a bug: {bug.caught_by}"):
            if (said := _told_of(bug, failures, seeded=False)) is not None:
                failures.append(f"without a bug, {bug.caught_by} fails: {said}")
    for bug in bugs:
        with console.status(f"{bug.name}: {bug.caught_by}"):
            said = _told_of(bug, failures, seeded=True)
        result["bugs"].append({"bug": bug.name, "caught_by": bug.caught_by, "says": said})
        if said is None:
            failures.append(f"{bug.caught_by} does not say that {bug.name}")
    result["caught"] = sum(told["says"] is not None for told in result["bugs"])
    return result


def _told_of(bug: Bug, failures: list[str], *, seeded: bool) -> str | None:
    """As `tried`; what is broken is put among the failures, and the others are tried all the same."""
    with copy_of(ROOT) as copy:
        if seeded:
            seed(copy, bug)
        try:
            return tried(copy, bug)
        except BrokenError as exc:
            failures.append(str(exc))
            return None


def table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['caught']} of {len(result['bugs'])} seeded bugs are caught")
    for column in ("bug", "harness", "what it says"):
        table.add_column(column)
    for told in result["bugs"]:
        table.add_row(told["bug"], told["caught_by"], told["says"] or "nothing")
    return table


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of the code, to put a bug in."""
    with tempfile.TemporaryDirectory(prefix="skeino-seeded-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(root / name, copy / name)
        if (root / ".cache").exists():
            (copy / ".cache").symlink_to(root / ".cache")  # the servers
        yield copy


def seed(copy: Path, bug: Bug) -> None:
    """Put the bug into the copy.

    Raises:
        ValueError: the code has changed, and the bug has not.
    """
    path = copy / bug.file
    text = path.read_text()
    if (number := text.count(bug.right)) != 1:
        raise ValueError(f"{bug.file} has {number} places, not one, where this could go wrong: {bug.name}.")
    path.write_text(text.replace(bug.right, bug.wrong))


class BrokenError(Exception):
    """A harness neither passes nor says what is wrong: it cannot be told whether the bug is caught."""


def tried(copy: Path, bug: Bug) -> str | None:
    """The line in which the bug's harness complains of it; None if it passes.

    Raises:
        BrokenError: it ends in another way, or complains of something else, or does not end.
    """
    is_harness = bug.caught_by.startswith("tests.chaos ")
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", *bug.caught_by.split(), *(["--json"] if is_harness else [])]
    with subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, error = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise BrokenError(f"{bug.caught_by} does not end.") from None
    if process.returncode == 0:
        return None
    said = "\n".join(json.loads(told or "{}").get("failures", [])) if is_harness else told
    if process.returncode != 1 or not said or bug.says not in said:
        raise BrokenError(f"{bug.caught_by} ends with {process.returncode}: {said[-1000:]} {error[-1000:]}")
    return next(line.strip() for line in said.splitlines() if bug.says in line)
