"""`python -m tests.chaos NAME`: runs a harness at length, and prints a table or JSON; exit status 1 if it failed."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from tests.chaos import (
    blocked,
    cold_starts,
    hostile,
    kills,
    leaving,
    points,
    resets,
    restarts,
    seeded,
    state_machine,
    stops,
    turns,
)
from tests.servers.process import ServerUnavailableError


class Harness(Protocol):
    """A module. A result is JSON, and has `failures`: sentences, none if all went well."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, arguments: argparse.Namespace, console: Console) -> dict[str, Any]: ...

    def table(self, result: dict[str, Any]) -> Table: ...


HARNESSES: dict[str, Harness] = {
    "cold-starts": cold_starts,
    "kills": kills,
    "stops": stops,
    "restarts": restarts,
    "blocked": blocked,
    "turns": turns,
    "resets": resets,
    "points": points,
    "leaving": leaving,
    "hostile": hostile,
    "model": state_machine,
    "seeded": seeded,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--names", action="store_true", help="print the harnesses' names")
    names = parser.add_subparsers(dest="harness")
    for name, harness in HARNESSES.items():
        one = names.add_parser(name, help=(harness.__doc__ or "").splitlines()[0], description=harness.__doc__)
        one.add_argument("--json", action="store_true", help="print JSON instead of a table")
        harness.add_arguments(one)
    arguments = parser.parse_args()
    if arguments.names:
        print(*HARNESSES)
        return 0
    if arguments.harness is None:
        parser.error("name a harness")
    harness = HARNESSES[arguments.harness]
    try:
        result = harness.run(arguments, Console(stderr=True))
    except ServerUnavailableError as exc:
        parser.exit(1, f"{exc}\n")
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        Console(soft_wrap=True).print(harness.table(result))
        for sentence in result["failures"]:
            print(sentence, file=sys.stderr)
    return 1 if result["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
