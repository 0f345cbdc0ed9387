"""Short forms of the harnesses of broken connections, failing operations and clients that leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.fleet import Place, fleet_at, place_of
from tests.chaos.leaving import leave
from tests.chaos.points import fail
from tests.chaos.resets import reset
from tests.contract.backends import DURABLE, MONGODB, POSTGRES
from tests.servers.proxy import PAUSES_OF_PYMONGO

pytestmark = pytest.mark.slow


@pytest.fixture(params=DURABLE)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """An empty database."""
    scheme: str = request.param
    with place_of(scheme, None if scheme == "sqlite" else request.getfixturevalue(f"private_{scheme}_server")) as new:
        yield new


@pytest.mark.parametrize("place", [POSTGRES, MONGODB], indirect=True)
async def test_connections_that_are_reset_lose_double_and_contradict_nothing(place: Place) -> None:
    async with fleet_at(place) as fleet:
        result = await reset(fleet, 60 if place.scheme == "postgres" else 20, workers=3)
    assert result["failures"] == []
    assert result["acknowledged_ends"] > 0
    assert result["ambiguous"] > 0


async def test_whichever_operation_fails_the_run_is_told_of_as_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for pause in PAUSES_OF_PYMONGO:
        monkeypatch.setattr(pause, 0.02)
    async with fleet_at(place) as fleet:
        result = await fail(fleet, 1)
    assert result["failures"] == []
    assert result["failed_before"] > 0
    assert result["failed_after"] > 0


async def test_clients_that_leave_leave_no_run_behind_that_has_not_ended(place: Place) -> None:
    async with fleet_at(place) as fleet:
        result = await leave(fleet, 100)
    assert result["failures"] == []
    assert result["clients_that_left"] >= 100
    assert result["starlette_interrupted"] > 0
