"""Short forms of the harnesses: what each of them counts is zero."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.chaos.blocked import block
from tests.chaos.fleet import Place, fleet_at, place_of
from tests.chaos.kills import kill
from tests.chaos.restarts import restart
from tests.chaos.stops import stop
from tests.contract.backends import DURABLE

pytestmark = pytest.mark.slow


@pytest.fixture(params=DURABLE)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty database that can go away."""
    scheme: str = request.param
    with place_of(scheme, None if scheme == "sqlite" else request.getfixturevalue(f"private_{scheme}_server")) as new:
        yield new


async def test_workers_that_are_killed_stopped_and_blocked_beside_each_other(place: Place) -> None:
    async with fleet_at(place) as one, fleet_at(place) as two, fleet_at(place) as three:
        killed, stopped, blocked = await asyncio.gather(kill(one, 4), stop(two, 1), block(three, 2))
    assert [*killed["failures"], *stopped["failures"], *blocked["failures"]] == []
    assert killed["ended_as_lost"] > 0, "no kill met a run on its way"
    assert stopped["late_ends_kept_aside"] == stopped["runs"] > 0
    assert blocked["runs"] > 0


async def test_after_a_database_was_away_the_dead_are_noticed_and_the_living_are_not(place: Place) -> None:
    async with fleet_at(place) as fleet:
        result = await restart(fleet, 1, workers=3, runs=20)
    assert result["failures"] == []
    assert result["dead_noticed"] == 1
