"""The stamped savers under test, and the tracker whose runs they stamp."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skeino import SkeinoSettings
from skeino_asgi import RunTracker
from tests.contract.backends import ALL, DURABLE, REDIS, module_database, module_mongodb, settings_of
from tests.savers.graphs import Saver

__all__ = ["module_database", "module_mongodb"]


@pytest.fixture(params=[*ALL, REDIS])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """The settings of an empty place to keep things, one backend after the other."""
    return settings_of(request, tmp_path)


@pytest.fixture(params=[*DURABLE, REDIS])
def durable_settings(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """As `settings`, of the backends that outlive the process."""
    return settings_of(request, tmp_path)


@pytest.fixture(params=DURABLE)
def locking_settings(request: pytest.FixtureRequest, tmp_path: Path) -> SkeinoSettings:
    """As `durable_settings`, of the backends where one transaction can wait for another."""
    return settings_of(request, tmp_path)


@pytest.fixture
async def tracker(settings: SkeinoSettings) -> AsyncIterator[RunTracker]:
    """A tracker with its persistence open, one backend after the other."""
    opened = RunTracker(settings)
    async with opened.lifespan():
        yield opened


@pytest.fixture
async def saver(tracker: RunTracker) -> Saver:
    """The tracker's stamped saver."""
    return tracker.checkpointer
