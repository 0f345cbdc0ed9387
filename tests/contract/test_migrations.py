"""From one version of the schema to the next, by made-up ones that go through the door of real ones."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings
from skeino.errors import SchemaError, StoreError
from skeino.persistence import open_persistence
from skeino.persistence.schema import read_schema
from skeino.testing import finished
from tests.chaos import next_versions
from tests.chaos.places import MongoPlace, PostgresPlace, SqlitePlace
from tests.contract.backends import DURABLE
from tests.contract.test_schema import without_setup


class Database:
    """A fresh database, and code of one version or another."""

    def __init__(self, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place = place
        self.uri = place.empty()
        self.settings = SkeinoSettings(checkpointer_scheme=place.scheme, checkpointer_uri=self.uri)
        self._monkeypatch = monkeypatch

    async def opened_by(self, number: int, *, setup: bool = True) -> None:
        """By code that knows so many made-up versions."""
        with self._monkeypatch.context() as patch:
            next_versions.install(self.place.scheme, number, patch.setattr)
            async with open_persistence(self.settings if setup else without_setup(self.settings)) as persistence:
                await finished(persistence.metadata_store, "t")

    def found(self, *, noted: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = self.place.found(self.uri, noted=noted)
        return found


@pytest.fixture(params=DURABLE)
def database(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    if request.param == "sqlite":
        place: Any = SqlitePlace(tmp_path)
    else:
        server = request.getfixturevalue(f"{request.param}_server")
        place = (PostgresPlace if request.param == "postgres" else MongoPlace)(server)
    one = Database(place, monkeypatch)
    yield one
    place.drop(one.uri)


async def test_an_older_schema_is_migrated_once_and_its_rows_are_kept(database: Database) -> None:
    await database.opened_by(0)
    await database.opened_by(2)
    await database.opened_by(2)
    found = database.found()
    assert ([*map(tuple, found["versions"])], found["wrong"]) == ([(3, 3)], [])
    assert (found["runs"], found["noted"]) == (3, 1)


async def test_an_older_schema_is_not_used_without_set_up(database: Database) -> None:
    await database.opened_by(0)
    with pytest.raises(SchemaError, match=r"older schema, version 1 of 3: run python -m skeino schema --apply"):
        await database.opened_by(2, setup=False)
    await database.opened_by(2)
    await database.opened_by(2, setup=False)


async def test_old_code_goes_on_with_a_version_that_only_added_something(database: Database) -> None:
    await database.opened_by(1)
    for setup in (True, False):
        await database.opened_by(0, setup=setup)
    assert [*map(tuple, database.found()["versions"])] == [(2, 1)]


async def test_old_code_keeps_away_from_a_version_that_it_cannot_use(database: Database) -> None:
    await database.opened_by(2)
    for number in (0, 1):
        for setup in (True, False):
            with pytest.raises(SchemaError, match=rf"version 3, .* knows {number + 1}: install"):
                await database.opened_by(number, setup=setup)
    assert database.found()["runs"] == 1
    state = await read_schema(database.settings)
    assert state.refused
    assert (state.version, state.compatible_from, state.known) == (3, 3, 1)


async def test_a_migration_that_fails_is_done_by_the_next_start(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await database.opened_by(0)
    schema, _ = next_versions._ADDED[database.place.scheme]
    bad: Any = "ALTER TABLE app_runs ADD COLUMN note text; SELECT nonsense"
    if database.place.scheme == "mongodb":
        bad = ({"createIndexes": "app_runs", "indexes": [{"key": {"note": 1}, "name": "note"}]}, {"nonsense": 1})
    with monkeypatch.context() as patch:
        next_versions.install(database.place.scheme, 1, patch.setattr)
        patch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS[:-1], bad))
        with pytest.raises(StoreError, match=r"lacks|refused"):
            async with open_persistence(database.settings):
                pass
    assert [*map(tuple, database.found(noted=False)["versions"])] == [(1, 1)]
    await database.opened_by(0)
    if database.place.scheme == "mongodb":  # what was done is recorded
        assert database.found(noted=False)["wrong"] != []
    await database.opened_by(1)
    assert [*map(tuple, database.found()["versions"])] == [(2, 1)]


def test_each_version_says_what_it_is_compatible_from() -> None:
    for schema, _ in next_versions._ADDED.values():
        assert len(schema.COMPATIBLE_FROM) == len(schema.MIGRATIONS)
        assert [*schema.COMPATIBLE_FROM] == sorted(schema.COMPATIBLE_FROM)
        assert all(old <= new for new, old in enumerate(schema.COMPATIBLE_FROM, 1))
