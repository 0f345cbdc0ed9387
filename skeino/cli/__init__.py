"""The command line. Each command has a module of its own, and `--json` for programs.

Exit statuses: 0 done, and all is well; 1 it was not, or could not be done; 2 the command or a setting is wrong;
130 interrupted by Ctrl-C. With `--json` an error that ends the command is `{"error": …}`.
"""

from __future__ import annotations

import json
import sys

import typer

from skeino.cli.copy import copy
from skeino.cli.doctor import doctor
from skeino.cli.schema import schema
from skeino.cli.sweep import sweep
from skeino.errors import ConfigurationError, SkeinoError

app = typer.Typer(
    name="skeino",
    help="Durable state and a record of every run for LangGraph applications.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("copy", context_settings={"allow_extra_args": True})(copy)
app.command("doctor", context_settings={"allow_extra_args": True})(doctor)
app.command("schema", context_settings={"allow_extra_args": True})(schema)
app.command("sweep", context_settings={"allow_extra_args": True})(sweep)


@app.callback()
def _skeino() -> None:
    """Durable state and a record of every run for LangGraph applications."""


def run() -> int:
    """Run the command that the process's arguments name; returns the exit status."""
    try:
        app(standalone_mode=True)
    except SkeinoError as exc:
        print(exc, file=sys.stderr)
        _tell_programs(str(exc))
        return 2 if isinstance(exc, ConfigurationError) else 1
    except SystemExit as exc:
        if exc.code == 2:  # typer has said more, for people
            _tell_programs("An option is missing or wrong: see the standard error, or --help.")
        return exc.code if isinstance(exc.code, int) else 1
    return 0


def _tell_programs(error: str) -> None:
    if "--json" in sys.argv:
        print(json.dumps({"error": error}, ensure_ascii=False))
