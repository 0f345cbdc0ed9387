"""docs/performance.json, and what is drawn and written from it: a part for each topic, which measuring makes anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import plots

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"
ELSEWHERE = {"sizes": DOCS / "scaling.md"}
"""Topics whose table is on another page."""
FIGURES = DOCS / "performance.json"
END = "<!-- end -->\n"


def begin(topic: str) -> str:
    """The line before a topic's table."""
    return f"<!-- written by python -m benchmarks {topic} --write: begin -->\n"


def written(page: str, topic: str, text: str) -> str:
    """The page with the topic's table replaced."""
    before, found, rest = page.partition(begin(topic))
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"{page_of(topic).name} has no place for {topic}: {begin(topic)}")
    return before + found + text + END + after


def write(results: dict[str, Any], texts: dict[str, str]) -> None:
    """Put these topics into both files, and leave the others as they are."""
    figures = json.loads(FIGURES.read_text()) | results
    FIGURES.write_text(json.dumps(figures, indent=2) + "\n")
    for topic, text in texts.items():
        page = page_of(topic)
        page.write_text(written(page.read_text(), topic, text))
    plots.write(figures)


def page_of(topic: str) -> Path:
    """The page that has the topic's table."""
    return ELSEWHERE.get(topic, PAGE)


# ── What tables have in common ───────────────────────────────────────────────────────────────────────────


def rate(figure: dict[str, Any]) -> str:
    """So many per second, and the quartiles."""
    return f"{figure['median']:,.0f} ({figure['low']:,.0f} – {figure['high']:,.0f})"


def times(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """How many times as much skeino does."""
    ratio = ours["median"] / theirs["median"]
    return "" if ours is theirs else f"× {ratio:.{0 if ratio >= 10 else 1 if ratio >= 1 else 2}f}"


def milliseconds(figure: dict[str, Any], step: str) -> str:
    """p50 and p99 of a step."""
    found = figure.get("milliseconds", {}).get(step)
    return f"{_short(found['p50'])} / {_short(found['p99'])} ms" if found else "–"


def processor(figure: dict[str, Any]) -> str:
    """Microseconds of the processor, here and elsewhere."""
    found = figure.get("processor")
    return f"{found['client']:,} + {found['others']:,} µs" if found else "–"


def _short(number: float) -> str:
    return f"{number:.1f}" if number >= 1 else f"{number:.2g}"
