"""The figures of docs/performance.json as pictures, which docs/performance.md shows: SVG, for light and dark pages.

What is drawn stands in each file's description as well, as JSON: so a test sees that the picture is of today's figures.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "docs/plots"

Points = list[tuple[float, float]]
Panels = dict[str, dict[str, Points]]
"""By scheme, the lines with their names."""


@dataclass(frozen=True)
class Plot:
    """A row of panels, one for each scheme, with two logarithmic axes."""

    topic: str
    across: str
    up: str
    panels: Callable[[dict[str, Any]], Panels]


def of_runs(result: dict[str, Any]) -> dict[str, Points]:
    return {
        way: [(float(number), figure["median"]) for number, figure in figures.items()]
        for way, figures in result["runs"].items()
    }


def of_puts(result: dict[str, Any]) -> dict[str, Points]:
    return {
        way: [(_bytes(size), ways[way]["median"]) for size, ways in result["aput"].items()]
        for way in ("skeino", "stock")
    }


def of_queries(result: dict[str, Any]) -> dict[str, Points]:
    return {name: _times(result["queries"][name]) for name in SHOWN}


def of_histories(result: dict[str, Any]) -> dict[str, Points]:
    return {
        f"{operation.partition(',')[0]}, {way}": _times(figures)
        for operation, ways in result["operations"].items()
        for way, figures in ways.items()
    }


SHOWN = (
    "search_threads, last changed",
    "search_threads, of an owner with ten",
    "search_threads, by metadata (ten rows)",
    "start and finish of a run",
)

PLOTS = {
    "runs.svg": Plot("growth", "at once", "runs per second", lambda schemes: _each(schemes, of_runs)),
    "aput.svg": Plot("growth", "bytes of the message", "aput per second", lambda schemes: _each(schemes, of_puts)),
    "queries.svg": Plot("tables", "rows", "ms", lambda schemes: _each(schemes, of_queries)),
    "histories.svg": Plot("histories", "checkpoints of the thread", "ms", lambda schemes: _each(schemes, of_histories)),
}


def write(figures: dict[str, Any]) -> None:
    """Draw all that there are figures for."""
    FOLDER.mkdir(exist_ok=True)
    for name, plot in PLOTS.items():
        if plot.topic not in figures:
            continue
        (FOLDER / name).write_text(svg(plot, plot.panels(figures[plot.topic]["schemes"])))


def described(text: str) -> Panels:
    """What an SVG file says that it shows."""
    _, _, after = text.partition("<dc:description>")
    found: dict[str, dict[str, list[list[float]]]] = json.loads(after.partition("</dc:description>")[0])
    return {
        scheme: {name: [(x, y) for x, y in points] for name, points in lines.items()} for scheme, lines in found.items()
    }


# ── Drawing ──────────────────────────────────────────────────────────────────────────────────────────────

_INK = "#010203"  # what is written and ruled: dark on a light page, light on a dark one
_COLOURS = ("#3b82f6", "#ea7317", "#22a06b", "#c2569b")  # to be told apart on both
_STYLE = """<style>
svg {{ --ink: #24292f }}
@media (prefers-color-scheme: dark) {{ svg {{ --ink: #e6edf3 }} }}
text {{ font-family: sans-serif }}
</style>"""


def svg(plot: Plot, panels: Panels) -> str:
    """The plot as SVG; the same figures give the same text."""
    import matplotlib  # here, for it takes half a second, which only drawing needs
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": plot.topic,
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 9,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9, 2.9), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (scheme, lines) in zip(axes, panels.items(), strict=True):
            names = [*lines]
            for name, points in lines.items():
                stock = name.endswith(("stock", "by hand"))
                axis.loglog(
                    *zip(*points, strict=True),
                    label=name,
                    color=_COLOURS[_colour_of(names, name)],
                    linestyle="--" if stock else "-",
                    marker="o",
                    markersize=3,
                    linewidth=1.5,
                )
            axis.set_title(scheme)
            axis.set_xlabel(plot.across)
            axis.grid(visible=True, which="major", alpha=0.25, linewidth=0.5, color=_INK)
            axis.minorticks_off()
            axis.xaxis.set_major_formatter(_plain)
            axis.yaxis.set_major_formatter(_plain)
        axes[0].set_ylabel(plot.up)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        file = io.StringIO()
        description = json.dumps(panels)
        metadata = {"Date": None, "Creator": None, "Description": description}
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue().replace(_INK, "var(--ink, #57606a)")
    before, opened, after = text.partition("<defs>")
    return before + _STYLE.format() + "\n " + opened + after


def _plain(number: float, _: int) -> str:
    """1k and not 10³."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def _colour_of(names: list[str], name: str) -> int:
    """Two lines of one operation share a colour, and one of the two is dashed."""
    operation = name.rpartition(", ")[0] if name.endswith((", skeino", ", stock")) else name
    operations = [one.rpartition(", ")[0] if one.endswith((", skeino", ", stock")) else one for one in names]
    return [*dict.fromkeys(operations)].index(operation)


def _each(schemes: dict[str, Any], lines: Callable[[dict[str, Any]], dict[str, Points]]) -> Panels:
    return {scheme: lines(result) for scheme, result in schemes.items()}


def _times(figures: dict[str, Any]) -> Points:
    return [(float(number), round(1000 / figure["median"], 3)) for number, figure in figures.items()]


def _bytes(size: str) -> float:
    number, unit = size.split()
    return float(number) * {"kB": 1e3, "MB": 1e6}[unit]
