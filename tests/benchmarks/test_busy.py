"""Figures in which a way beats its own limit are the figures of a busy machine, and are named."""

from typing import Any

from benchmarks.runs import beaten_limits


def ways(**medians: float) -> dict[str, Any]:
    return {"sqlite": {"ways": {way.replace("_", " "): {"1": {"median": one}} for way, one in medians.items()}}}


def test_a_way_that_beats_its_limit_is_named() -> None:
    assert beaten_limits(ways(skeino=200, one_connection=773, the_limit=218)) == [
        "sqlite, 1 at once: one connection has 773/s, the limit 218/s"
    ]


def test_a_way_at_its_limit_is_within_the_spread() -> None:
    assert beaten_limits(ways(skeino=105, the_limit=100)) == []


def test_a_way_without_a_limit_beats_none() -> None:
    assert beaten_limits(ways(skeino=105)) == []
