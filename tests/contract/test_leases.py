"""Leases, on every backend that outlives its processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from skeino import SkeinoSettings
from skeino.persistence import MetadataStoreProtocol, open_persistence
from skeino.testing import LeaseContract
from tests.contract.backends import CLIENT, DURABLE, MOTOR, client_settings, empty_mongodb, settings_of


@pytest.fixture(params=[*DURABLE, MOTOR, CLIENT])
async def settings(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SkeinoSettings]:
    """As everywhere, but for the scheme `memory`, whose rows die with the process."""
    if request.param not in ("mongodb-motor", "mongodb-client"):
        yield settings_of(request, tmp_path)
        return
    uri: str = request.getfixturevalue("module_mongodb")
    empty_mongodb(uri)
    async with client_settings(uri, motor=request.param == "mongodb-motor") as of_client:
        yield of_client


@pytest.fixture
async def store(settings: SkeinoSettings) -> AsyncIterator[MetadataStoreProtocol]:
    async with open_persistence(settings) as persistence:
        yield persistence.metadata_store


class TestLeases(LeaseContract):
    """See `skeino.testing`."""
