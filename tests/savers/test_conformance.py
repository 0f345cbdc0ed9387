"""LangGraph's own suite for checkpointers, on ours: with a run active, and without."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import DetectedCapabilities
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

from skeino import SkeinoSettings, current_run
from skeino.persistence import RunStampMixin
from skeino.persistence.stamping import stamped
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver

BASE_TESTS = {"put": 17, "put_writes": 10, "get_tuple": 10, "list": 16, "delete_thread": 5}
MORE_TESTS = {"delete_for_runs": 7, "copy_thread": 8, "prune": 8}


def factory_for(settings: SkeinoSettings, *, with_run: bool) -> Any:
    """The suite asks for a fresh saver for each capability."""

    @checkpointer_test(name=f"{settings.checkpointer_scheme}, run={with_run}")
    async def savers() -> AsyncIterator[Saver]:
        tracker = RunTracker(settings)
        async with tracker.lifespan():
            assert isinstance(tracker.checkpointer, RunStampMixin)
            if with_run:
                async with tracker.run():
                    assert current_run() is not None
                    yield tracker.checkpointer
            else:
                yield tracker.checkpointer

    return savers


@pytest.mark.parametrize("with_run", [False, True], ids=["without a run", "in a run"])
async def test_the_official_suite_passes(settings: SkeinoSettings, with_run: bool) -> None:
    report = await validate(factory_for(settings, with_run=with_run))
    more = {} if settings.checkpointer_scheme == "mongodb" else MORE_TESTS
    for capability, number in (BASE_TESTS | more).items():
        result = report.results[capability]
        assert result.failures == []
        assert (result.detected, result.passed, result.tests_failed) == (True, True, 0)
        assert result.tests_passed >= number, f"the suite has fewer tests of {capability} than it had"
    assert report.passed_all_base()
    assert more == {} or report.conformance_level() == "FULL"


@pytest.mark.parametrize("stock_class", [InMemorySaver, AsyncSqliteSaver, AsyncPostgresSaver, MongoDBSaver])
def test_stamping_neither_hides_nor_fakes_a_capability(stock_class: type[Saver]) -> None:
    stock = stock_class.__new__(stock_class)  # detection looks at the type alone
    with_stamps = stamped(stock)
    assert isinstance(with_stamps, RunStampMixin)
    assert isinstance(with_stamps, stock_class)
    detected = DetectedCapabilities.from_instance(with_stamps)
    assert detected == DetectedCapabilities.from_instance(stock)
    assert 5 <= len(detected.detected) < 8
