"""LangGraph's own suite for checkpointers, on ours: with a run active, and without."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from langgraph.checkpoint.conformance.capabilities import DetectedCapabilities
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.redis.aio import AsyncRedisSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from skeino import SkeinoSettings
from skeino.persistence import RunStampMixin, open_persistence
from skeino.persistence.stamping import stamped
from tests.savers.conformance_table import CAPABILITIES, Savers, cell, documented, ours, report_on
from tests.savers.graphs import Saver

TESTS = {
    "put": 17,
    "put_writes": 10,
    "get_tuple": 10,
    "list": 16,
    "delete_thread": 5,
    "delete_for_runs": 7,
    "copy_thread": 8,
    "prune": 8,
}


def without_a_run(settings: SkeinoSettings) -> Savers:
    @asynccontextmanager
    async def open_saver() -> AsyncIterator[Saver]:
        async with open_persistence(settings) as persistence:
            yield persistence.checkpointer

    return open_saver


@pytest.mark.parametrize("savers", [without_a_run, ours], ids=["without a run", "in a run"])
async def test_the_official_suite_passes(settings: SkeinoSettings, savers: Callable[[SkeinoSettings], Savers]) -> None:
    scheme = settings.checkpointer_scheme
    report = await report_on(scheme, savers(settings))
    for capability, number in TESTS.items():
        result = report.results[capability]
        assert result.failures == []
        assert (result.detected, result.passed, result.tests_failed) == (True, True, 0)
        assert result.tests_passed >= number, f"the suite has fewer tests of {capability} than it had"
    assert report.passed_all()
    assert {capability: cell(report, capability) for capability in CAPABILITIES} == documented(scheme), (
        "docs/conformance.md says otherwise: run make conformance"
    )


async def test_the_savers_under_test_are_stamped(saver: Saver) -> None:
    assert isinstance(saver, RunStampMixin)


@pytest.mark.parametrize(
    "stock_class", [InMemorySaver, AsyncSqliteSaver, AsyncPostgresSaver, MongoDBSaver, AsyncRedisSaver]
)
def test_stamping_neither_hides_nor_fakes_a_capability(stock_class: type[Saver]) -> None:
    stock = stock_class.__new__(stock_class)  # detection looks at the type alone
    with_stamps = stamped(stock)
    assert isinstance(with_stamps, RunStampMixin)
    assert isinstance(with_stamps, stock_class)
    detected = DetectedCapabilities.from_instance(with_stamps)
    assert detected == DetectedCapabilities.from_instance(stock)
    assert 5 <= len(detected.detected) < 8
