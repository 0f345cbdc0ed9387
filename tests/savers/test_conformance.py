"""LangGraph's own suite for checkpointers, on ours: with a run active, and without."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import DetectedCapabilities
from langgraph.checkpoint.memory import InMemorySaver

from skeino import SkeinoSettings, current_run
from skeino.persistence import RunStampMixin
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver

BASE_TESTS = {"put": 17, "put_writes": 10, "get_tuple": 10, "list": 16, "delete_thread": 5}


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
    for capability, number in BASE_TESTS.items():
        result = report.results[capability]
        assert result.failures == []
        assert (result.detected, result.passed, result.tests_failed) == (True, True, 0)
        assert result.tests_passed >= number, f"the suite has fewer tests of {capability} than it had"
    assert report.passed_all_base()
    for capability, result in report.results.items():
        if capability not in BASE_TESTS and result.detected:
            assert (result.passed, result.failures) == (True, [])
            assert result.tests_passed > 0


async def test_stamping_neither_hides_nor_fakes_a_capability(saver: Saver, settings: SkeinoSettings) -> None:
    if settings.checkpointer_scheme == "memory":
        stock: Saver = InMemorySaver()
    elif settings.checkpointer_scheme == "sqlite":
        from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

        stock = AsyncSqliteSaver.__new__(AsyncSqliteSaver)  # detection looks at the type alone
    elif settings.checkpointer_scheme == "mongodb":
        from langgraph.checkpoint.mongodb import MongoDBSaver

        stock = MongoDBSaver.__new__(MongoDBSaver)
    else:
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver

        stock = AsyncPostgresSaver.__new__(AsyncPostgresSaver)
    assert isinstance(saver, type(stock))
    assert DetectedCapabilities.from_instance(saver) == DetectedCapabilities.from_instance(stock)
    assert len(DetectedCapabilities.from_instance(saver).detected) >= 5
