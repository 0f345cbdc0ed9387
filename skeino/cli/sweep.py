"""`skeino sweep`: what is due by the threads' `ttl` and the retention of runs, done once; for cron."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from skeino.cli.copy import settings_of
from skeino.errors import ConfigurationError
from skeino.persistence.opening import open_persistence
from skeino.persistence.registry import is_built_in, keeps_rows, normalised_scheme
from skeino.persistence.sweeping import SWEEP_SECONDS, Due, Sweep, SweepableStore, SweepReport
from skeino.runs import new_id
from skeino.settings import SkeinoSettings

OnProgress = Callable[[Due, Due], None]
"""Told what there was to do, and what has been done."""


def sweep(
    context: typer.Context,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            envvar="SWEEP_URI",
            show_envvar=True,
            metavar="URI",
            help="The database, if not that of SKEINO_CHECKPOINTER_SCHEME and _URI.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what is due.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as a JSON object.")] = False,
) -> None:
    """Delete or prune threads by their ttl, and delete finished runs older than SKEINO_RUN_RETENTION_DAYS.

    Threads with an active run are left alone. Interrupted, the next sweep goes on.

    Exit status: 0 done, or another process is at it; 1 a failure, or something was left; 2 wrong arguments or settings;
    130 interrupted.
    """
    if context.args:  # which typer would repeat, password and all
        raise ConfigurationError("skeino sweep takes options only: write --uri URI.")
    settings = SkeinoSettings() if uri is None else settings_of(uri, "--uri")
    scheme = normalised_scheme(settings.checkpointer_scheme)
    if not keeps_rows(scheme):
        raise ConfigurationError(
            f"The scheme {scheme[:40]!r} keeps no threads and runs beyond its process, so there is nothing to sweep "
            "from here: name the application's database, by SKEINO_CHECKPOINTER_SCHEME and _URI or --uri; or, if that "
            "is its scheme, set sweep_interval_minutes there."
        )
    settings = _as_it_is(settings, scheme)
    try:
        if dry_run:
            _print_due(asyncio.run(_count(settings)), as_json=as_json)
            return
        with _progress() as on_progress:
            report = asyncio.run(_sweep(settings, on_progress))
    except KeyboardInterrupt:
        print("Interrupted: what was done stays done; the next sweep goes on.", file=sys.stderr)
        raise typer.Exit(130) from None
    _print_report(report, as_json=as_json)
    if report is not None and (report.failed_threads or report.cannot_prune):
        raise typer.Exit(1)


def _as_it_is(settings: SkeinoSettings, scheme: str) -> SkeinoSettings:
    """The settings, but that no schema is made: there would be nothing to sweep. Other people's schemes may have no
    such option."""
    if not is_built_in(scheme):
        return settings
    options = {**settings.checkpointer_options, "setup_schema": False}
    return settings.model_copy(update={"checkpointer_options": options})


async def _count(settings: SkeinoSettings) -> Due:
    async with open_persistence(settings) as persistence:
        return await _sweepable(persistence.metadata_store).sweeps().count_due(settings.run_retention)


async def _sweep(settings: SkeinoSettings, on_progress: OnProgress) -> SweepReport | None:
    """What was done; None if another process is at it."""
    async with open_persistence(settings) as persistence:
        sweeps = _sweepable(persistence.metadata_store).sweeps()
        worker_id = f"skeino sweep {new_id()}"
        due = await sweeps.count_due(settings.run_retention)
        if await sweeps.begin(worker_id, seconds=SWEEP_SECONDS, interval=0.0) > 0.0:
            return None
        on_progress(due, Due())
        one = Sweep(
            sweeps,
            persistence.checkpointer,
            worker_id,
            settings.run_retention,
            on_progress=lambda done: on_progress(due, done),
        )
        return await one.run()


def _sweepable(store: object) -> SweepableStore:
    if isinstance(store, SweepableStore):
        return store
    raise ConfigurationError(f"The metadata store {type(store).__name__} cannot be swept: it has no method sweeps().")


@contextmanager
def _progress() -> Iterator[OnProgress]:
    """A bar for threads and one for runs on the standard error, if that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        threads, runs = progress.add_task("Threads", total=None), progress.add_task("Finished runs", total=None)

        def show(due: Due, done: Due) -> None:
            number = done.deleted_threads + done.pruned_threads
            progress.update(threads, completed=number, total=due.deleted_threads + due.pruned_threads)
            progress.update(runs, completed=done.deleted_runs, total=due.deleted_runs)

        yield show


def _print_due(due: Due, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"dry_run": True, **due._asdict()}))
        return
    print(
        f"Due are {due.deleted_threads} threads to delete, {due.pruned_threads} to prune, and {due.deleted_runs} "
        "finished runs to delete; those with active runs are counted, and would be left."
    )


def _print_report(report: SweepReport | None, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"dry_run": False, "busy": report is None, **({} if report is None else asdict(report))}))
    elif report is None:
        print("Another process is sweeping this database: nothing was done.")
    else:
        print(
            f"Deleted {report.deleted_threads} threads, pruned {report.pruned_threads}, deleted {report.deleted_runs} "
            "finished runs."
        )
        for number, why in (
            (report.kept_threads, "have an active run, or have changed meanwhile"),
            (report.unprunable_threads, "have delta channels and cannot be pruned"),
            (report.failed_threads, "could not be dealt with: see the log, and sweep again"),
        ):
            if number:
                print(f"Of the others {number} {why}.")
        if report.cannot_prune:
            print("Threads with a ttl of 'keep_latest' stay as they are: this checkpointer cannot prune.")
        if report.broken_off:
            print("It was broken off, for another process sweeps this database now.")
