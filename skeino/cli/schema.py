"""`skeino schema`: what the database has of the schema; the SQL that makes it; bringing it up to date."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from skeino.cli.copy import settings_of
from skeino.errors import ConfigurationError
from skeino.persistence.schema import apply_schema, read_schema, schema_script
from skeino.persistence.versions import SchemaState
from skeino.settings import SkeinoSettings


def schema(
    context: typer.Context,
    uri: Annotated[
        str | None,
        typer.Option(
            "--uri",
            envvar="SCHEMA_URI",
            show_envvar=True,
            metavar="URI",
            help="The database, if not that of SKEINO_CHECKPOINTER_SCHEME and _URI: of a role that may CREATE, say.",
        ),
    ] = None,
    show: Annotated[
        bool, typer.Option("--print", help="Print what makes the schema, for psql, sqlite3 or mongosh.")
    ] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Make what is missing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Say which version of the schema the database has, and what is missing; or make it.

    Exit status: 0 the application finds all that it needs, 1 it does not or the database cannot be used, 2 wrong
    arguments or settings.
    """
    if context.args:  # which typer would repeat, password and all
        raise ConfigurationError("skeino schema takes options only: write --uri URI.")
    if show and apply:
        raise ConfigurationError("--print and --apply exclude each other: choose one.")
    settings = SkeinoSettings() if uri is None else settings_of(uri, "--uri")
    if show:
        script = schema_script(settings)
        print(json.dumps({"script": script}, ensure_ascii=False) if as_json else script, end="\n" if as_json else "")
        return
    before = asyncio.run(read_schema(settings))
    if not apply:
        _print_state(before, as_json=as_json)
        raise typer.Exit(0 if _sentence(before) is None else 1)
    with _progress():
        after = asyncio.run(apply_schema(settings))
    if as_json:
        print(json.dumps({"from_version": before.version, **_told(after)}, ensure_ascii=False))
    elif before.lacking is None:
        print(f"Nothing to do: the schema has version {after.version}.")
    else:
        print(f"The schema has version {after.version} now.")


def _sentence(state: SchemaState) -> str | None:
    return state.refused or state.lacking


def _told(state: SchemaState) -> dict[str, Any]:
    sentence = _sentence(state)
    return {**state.as_json(), "ready": sentence is None, "problem": sentence}


def _print_state(state: SchemaState, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(_told(state), ensure_ascii=False))
        return
    table = Table(show_header=False)
    table.add_row("version of the database", str(state.version or "none"))
    table.add_row("usable by code of version", f"{state.compatible_from} and later" if state.version else "")
    table.add_row("version of this code", str(state.known))
    table.add_row("missing", "\n".join(state.missing) or "nothing")
    console = Console(soft_wrap=True)
    console.print(table)
    sentence = _sentence(state)
    print(sentence or "The application finds all that it needs.")


@contextmanager
def _progress() -> Iterator[None]:
    """What is being made, step by step, on the standard error, if that is a terminal."""
    console = Console(stderr=True)
    logger = logging.getLogger("skeino")
    if not console.is_terminal:
        yield
        return

    class Shown(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.print(record.getMessage(), markup=False, highlight=False)

    handler, level = Shown(logging.INFO), logger.level
    with console.status("Bringing the schema up to date …"):
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
