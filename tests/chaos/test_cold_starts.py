"""Short forms of `python -m tests.chaos cold-starts`; how long a start takes is judged by the long one only."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import cold_starts
from tests.chaos.cold_starts import Orders, starter
from tests.chaos.places import MongoPlace, Place, PostgresPlace, SqlitePlace
from tests.contract.backends import DURABLE


@pytest.fixture(scope="module")
def orders() -> Iterator[Orders]:
    with starter() as running:
        yield running


@pytest.fixture(params=DURABLE)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        return SqlitePlace(tmp_path)
    server: Any = request.getfixturevalue(f"{request.param}_server")
    return PostgresPlace(server) if request.param == "postgres" else MongoPlace(server)


@pytest.mark.slow
def test_all_start_from_nothing_an_older_version_and_what_a_kill_left(place: Place, orders: Orders) -> None:
    outcomes = cold_starts.measured(place, orders, rounds=1)
    assert [outcome.scenario for outcome in outcomes] == [*cold_starts.SCENARIOS]
    for outcome in outcomes:
        assert outcome.failures == []
        assert len(outcome.seconds) == cold_starts.NUMBER
        assert outcome.kills == (1 if outcome.scenario in ("half", "killed") else 0)
