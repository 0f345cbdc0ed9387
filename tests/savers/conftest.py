"""The stamped savers under test, and the tracker whose runs they stamp."""

from collections.abc import AsyncIterator

import pytest

from skeino import SkeinoSettings
from skeino_asgi import RunTracker
from tests.contract.backends import durable_settings, module_database, module_mongodb, settings
from tests.savers.graphs import Saver

__all__ = ["durable_settings", "module_database", "module_mongodb", "settings"]


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
