"""`skeino doctor`: the settings, checked against the living database; and what to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from skeino.cli.copy import settings_of
from skeino.errors import ConfigurationError
from skeino.persistence.checks import Check, Outcome
from skeino.persistence.doctor import examine
from skeino.persistence.registry import normalised_scheme
from skeino.settings import SkeinoSettings

_STYLES: Final[dict[Outcome, str]] = {"ok": "green", "warning": "yellow", "failure": "red", "skipped": "dim"}


def doctor(
    context: typer.Context,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            envvar="DOCTOR_URI",
            show_envvar=True,
            metavar="URI",
            help="The database, if not that of SKEINO_CHECKPOINTER_SCHEME and _URI.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=100_000, help="Processes of the application, on all machines together.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Check the settings against the living database, and say what to do. Nothing is written.

    Exit status: 0 nothing has failed (warnings may have been given), 1 something has, 2 wrong arguments or settings.
    """
    if context.args:  # which typer would repeat, password and all
        raise ConfigurationError("skeino doctor takes options only: write --uri URI.")
    settings = SkeinoSettings() if uri is None else settings_of(uri, "--uri")
    with _progress() as on_check:
        checks = asyncio.run(_examined(settings, workers, on_check))
    healthy = not any(check.outcome == "failure" for check in checks)
    if as_json:
        scheme = normalised_scheme(settings.checkpointer_scheme)
        told = {"scheme": scheme, "healthy": healthy, "checks": [check._asdict() for check in checks]}
        print(json.dumps(told, ensure_ascii=False))
    else:
        _print(checks)
    if not healthy:
        raise typer.Exit(1)


async def _examined(settings: SkeinoSettings, workers: int, on_check: Callable[[str], None]) -> list[Check]:
    checks = []
    async for check in examine(settings, workers):
        on_check(check.name)
        checks.append(check)
    return checks


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What was looked at last, on the standard error, if that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("Looking …") as status:
        yield lambda name: status.update(f"Looking … {name}")


def _print(checks: list[Check]) -> None:
    table = Table("check", "", "what was found, and what to do")
    for check in checks:
        told = check.found if check.advice is None else f"{check.found}\n→ {check.advice}"
        table.add_row(check.name, f"[{_STYLES[check.outcome]}]{check.outcome}[/]", _plain(told))
    Console(soft_wrap=False).print(table)
    number = {outcome: sum(check.outcome == outcome for check in checks) for outcome in ("failure", "warning")}
    if any(number.values()):
        found = ", ".join(f"{many} {outcome}{'' if many == 1 else 's'}" for outcome, many in number.items())
        print(f"{found}: see above what to do.")
    else:
        print("All is well.")


def _plain(text: str) -> str:
    """Without rich's markup, which ids and names may look like."""
    return text.replace("[", r"\[")
