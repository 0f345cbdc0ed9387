"""The plots of docs/performance.md are drawn from the figures beside them."""

import json
import re

import pytest

from benchmarks.page import FIGURES, PAGE
from benchmarks.plots import FOLDER, PLOTS, described, svg


def test_the_page_shows_each_plot_and_says_what_is_to_be_seen() -> None:
    shown = re.findall(r"!\[([^\]]*)\]\(plots/([^)]+)\)", PAGE.read_text())
    assert sorted(name for _, name in shown) == sorted(PLOTS) == sorted(file.name for file in FOLDER.iterdir())
    assert all(len(alternative) > 40 for alternative, _ in shown)


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_drawn_from_the_figures(name: str) -> None:
    plot = PLOTS[name]
    panels = plot.panels(json.loads(FIGURES.read_text())[plot.topic]["schemes"])
    assert described((FOLDER / name).read_text()) == panels
    assert all(len(points) > 1 for lines in panels.values() for points in lines.values())


def test_the_same_figures_give_the_same_picture_and_others_another() -> None:
    plot = PLOTS["runs.svg"]
    panels = {"sqlite": {"skeino": [(1.0, 10.0), (8.0, 20.0)], "by hand": [(1.0, 10.0), (8.0, 11.0)]}}
    first = svg(plot, panels)

    assert svg(plot, panels) == first
    assert described(first) == panels
    assert first.count("<dc:date>") == 0
    panels["sqlite"]["skeino"][1] = (8.0, 200.0)
    assert re.findall(r'<path d="[^"]+"', svg(plot, panels)) != re.findall(r'<path d="[^"]+"', first)


def test_a_plot_can_be_read_on_light_and_dark_pages() -> None:
    text = svg(PLOTS["runs.svg"], {"sqlite": {"skeino": [(1.0, 10.0), (8.0, 20.0)]}})
    assert "prefers-color-scheme: dark" in text
    assert "#000000" not in text
    assert "#ffffff" not in text.lower()
