"""`skeino copy`: all threads, runs and state of one database, into another."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from skeino.copying import CopyProgress, CopyReport, Count, copy_persistence, survey
from skeino.copying.moving import DEFAULT_CONCURRENCY, MAX_CONCURRENCY
from skeino.copying.report import OnProgress
from skeino.errors import ConfigurationError
from skeino.persistence.registry import ALIASES, prefix_of
from skeino.settings import SkeinoSettings

COPIED: Final = ("sqlite", "postgres", "mongodb")
SHOWN: Final = 20
"""How many differences are printed; `--json` has more."""

_LABELS: Final = {"threads": "Threads", "runs": "Runs", "state": "State of threads", "verification": "Comparing rows"}


def copy(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Option(
            "--from", envvar="COPY_FROM", show_envvar=True, metavar="URI", help="Where to copy from: only read."
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option(
            "--to", envvar="COPY_TO", show_envvar=True, metavar="URI", help="Where to copy to: nothing is overwritten."
        ),
    ] = None,
    concurrency: Annotated[
        int, typer.Option(min=1, max=MAX_CONCURRENCY, help="How many threads' states are copied at once.")
    ] = DEFAULT_CONCURRENCY,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is there to copy.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as a JSON object.")] = False,
) -> None:
    """Copy all threads, runs and graph state to another database, and verify the copy.

    A URI begins with its scheme: sqlite:///file.db, postgresql://user@host/db, mongodb://host/db. Stop the application
    first. Interrupted, the same command goes on where it stopped.

    Exit status: 0 copied and verified, 1 differences or a failure, 2 wrong arguments or settings, 130 interrupted.
    """
    if context.args:  # which typer would repeat, password and all
        raise ConfigurationError("skeino copy takes options only: write --from URI --to URI.")
    here = settings_of(source, "--from")
    if target is None and not dry_run:
        raise ConfigurationError("There is no target: give --to, or the variable COPY_TO.")
    there = None if target is None else settings_of(target, "--to")
    try:
        with _progress() as on_progress:
            if there is None or dry_run:
                report = asyncio.run(survey(here, on_progress=on_progress))
            else:
                report = asyncio.run(copy_persistence(here, there, concurrency=concurrency, on_progress=on_progress))
    except KeyboardInterrupt:
        print("Interrupted: what was copied stays; run the same command again to go on.", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_report(report, as_json=as_json, dry_run=dry_run)
    if not report.verified:
        raise typer.Exit(1)


def settings_of(uri: str, option: str) -> SkeinoSettings:
    """The settings that a URI stands for, whose prefix is the scheme; the environment's own do not count.

    Raises:
        ConfigurationError: it has no prefix, or one of a scheme that is not copied; the message repeats that only.
    """
    prefix = prefix_of(uri.strip())
    if prefix is None:
        raise ConfigurationError(
            f"{option} must begin with its scheme: sqlite:///file.db, postgresql://user@host/db or mongodb://host/db."
        )
    name = prefix.lower().removesuffix("+srv")
    scheme = ALIASES.get(name, name)
    if scheme not in COPIED:
        why = {
            "redis": "keeps no threads and runs",
            "rediss": "keeps no threads and runs",
            "memory": "keeps nothing beyond its process",
        }.get(scheme, "is not known to this command")
        wanted = f"{', '.join(COPIED[:-1])} or {COPIED[-1]}"
        raise ConfigurationError(f"{option} must be a URI of {wanted}, but it begins with {prefix!r}, which {why}.")
    return SkeinoSettings(
        checkpointer_scheme=scheme, checkpointer_uri=uri, checkpointer_options={}, allow_ephemeral_metadata=False
    )


@contextmanager
def _progress() -> Iterator[OnProgress | None]:
    """A bar for each phase on the standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: CopyProgress) -> None:
            if step.phase not in tasks:
                tasks[step.phase] = progress.add_task(_LABELS[step.phase], total=None)
            progress.update(tasks[step.phase], completed=step.done, total=step.total)

        yield show


def _print_report(report: CopyReport, *, as_json: bool, dry_run: bool) -> None:
    if as_json:
        told = {"dry_run": dry_run, **report.as_json()}
        print(json.dumps({**told, "verified": None} if dry_run else told, ensure_ascii=False))
        return
    console = Console(soft_wrap=True)
    console.print(_table(report, dry_run=dry_run))
    if report.active_runs:
        console.print(
            f"{report.active_runs} runs are active at the source: is the process that they belong to stopped?",
            style="yellow",
        )
    for sentence in report.differences[:SHOWN]:
        console.print(sentence, style="red", markup=False, highlight=False)
    more = len(report.differences) + report.more_differences - SHOWN
    if more > 0:
        console.print(f"… and {more} more differences.", style="red")
    if not dry_run:
        console.print("Copied and verified." if report.verified else "The copy is not complete.")


def _table(report: CopyReport, *, dry_run: bool) -> Table:
    counts: dict[str, Count] = {
        "threads": report.threads,
        "runs": report.runs,
        "checkpoints": report.checkpoints,
        "pending writes": report.pending_writes,
    }
    table = Table("", *(["at the source"] if dry_run else ["at the source", "newly written"]))
    for name, count in counts.items():
        table.add_row(name, *(str(number) for number in ([count.found] if dry_run else [count.found, count.copied])))
    return table
