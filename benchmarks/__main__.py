"""`python -m benchmarks`: measures, prints tables, and with `--write` puts them into docs/performance.md."""

from __future__ import annotations

import argparse
import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks import machine, middleware
from benchmarks.measuring import Figure, interleaved

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
BEGIN, END = "<!-- written by python -m benchmarks --write: begin -->\n", "<!-- end -->\n"


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.rounds < 2 or arguments.times < 1:
        parser.error("at least 2 rounds of 1 request are needed")
    figures = asyncio.run(_middleware(arguments.rounds, arguments.times))
    result = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine.described(),
        "rounds": arguments.rounds,
        "requests_per_round": arguments.times,
        "unit": "microseconds per request",
        "middleware": {name: figure.as_json() for name, figure in figures.items()},
    }
    text = table(result)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(text)
    if arguments.write:
        (DOCS / "performance.json").write_text(json.dumps(result, indent=2) + "\n")
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    figures = result["middleware"]
    bare = figures["bare application"]["median"]
    lines = [
        "| | µs per request | quartiles | above bare | |",
        "|---|---|---|---|---|",
    ]
    for name, figure in figures.items():
        above = figure["median"] - bare
        lines.append(
            f"| {name} | {figure['median']:.1f} | {figure['low']:.1f} – {figure['high']:.1f} | "
            f"{above:.1f} | {middleware.VARIANTS[name]} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Medians of {result['rounds']} interleaved rounds of {result['requests_per_round']} requests each, "
            f"{result['measured_at'][:10]}. {result['machine']}.",
            "",
        ]
    )


async def _middleware(rounds: int, times: int) -> dict[str, Figure]:
    async with AsyncExitStack() as stack:
        works = await middleware.work_of_variants(stack)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("middleware", total=rounds + 1)
            return await interleaved(
                works, rounds=rounds, times=times, after_round=lambda number: progress.advance(task)
            )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="interleaved rounds (default: 60)")
    parser.add_argument("--times", type=int, default=500, help="requests of each variant in a round (default: 500)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--write", action="store_true", help=f"put the result into {PAGE.relative_to(DOCS.parent)}")
    return parser


if __name__ == "__main__":
    main()
