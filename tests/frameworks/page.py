"""Writes the tables of docs/frameworks.md from the table that the tests go through.

python -m tests.frameworks
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Final

from tests.frameworks.table import FRAMEWORKS, NO_BACKGROUND, NOT_NATIVE, WAYS, Cell, Framework, Way

PAGE: Final = Path(__file__).parents[2] / "docs" / "frameworks.md"
BEGIN: Final = "<!-- written by python -m tests.frameworks: begin -->\n"
END: Final = "<!-- end -->\n"

TEXT: Final = """
{matrix}

{ways}

Not native:

{not_native}

What the frameworks do differently:

{differences}

No such task:

{no_background}

"""


def matrix() -> str:
    """Each framework in each way."""
    rows = [
        [framework.name, *("yes" if Cell(framework, way).exists else "–" for way in WAYS)] for framework in FRAMEWORKS
    ]
    return table(["framework", *(way.name for way in WAYS)], rows)


def differences() -> str:
    """What follows from what a framework is."""
    heads = [
        "framework",
        "a handler's exception, in the run's row",
        "`X-Run-ID` on its 500",
        "own start-up hooks in a mount, or without lifespan",
        "a task after the response",
        "a client that leaves in mid-stream",
        "a synchronous handler",
    ]
    rows = [
        [
            framework.name,
            "its class and message" if Cell(framework, way_named("wrapped")).sees_exception else "status 500",
            header_on_500(framework),
            hooks_without_lifespan(framework),
            "in the run" if framework.background else "–",
            "`interrupted`" if framework.notices_leaving else "not noticed: `success`",
            framework.synchronous,
        ]
        for framework in FRAMEWORKS
    ]
    return table(heads, rows)


def header_on_500(framework: Framework) -> str:
    if framework.errors == "nowhere":
        return "no: the server's own answer"
    natively = Cell(framework, way_named("native"))
    return "not natively" if natively.exists and not natively.sees_500 else "yes"


def hooks_without_lifespan(framework: Framework) -> str:
    if not framework.hooks:
        return "it has none"
    return "run with the first request" if framework.starts_itself else "do not run"


def way_named(name: str) -> Way:
    (way,) = (way for way in WAYS if way.name == name)
    return way


def table(heads: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace(" --- ", "---") for line in lines)


def generated() -> str:
    """What stands between the page's two comments, but for the versions."""
    return TEXT.format(
        matrix=matrix(),
        ways="\n".join(f"- **{way.name}**: {way.meaning}" for way in WAYS),
        not_native="\n".join(f"- {name}: {reason}" for name, reason in NOT_NATIVE.items()),
        differences=differences(),
        no_background="\n".join(f"- {name}: {reason}" for name, reason in NO_BACKGROUND.items()),
    )


def versions() -> str:
    distributions = [framework.distribution for framework in FRAMEWORKS if framework.distribution]
    return f"Versions: {', '.join(f'{name} {version(name)}' for name in distributions)}.\n"


def documented() -> str:
    """What the page has there, but for the versions."""
    between = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    return between.partition("Versions: ")[0]


def write() -> None:
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{generated()}{versions()}"
    PAGE.write_text(f"{before}{BEGIN}{text}{END}{after}")
    sys.stdout.write(text)
