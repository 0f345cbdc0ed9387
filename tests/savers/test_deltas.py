"""`DeltaChannel`: what is rebuilt from pending writes is what the run had."""

from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langgraph.channels import DeltaChannel
from langgraph.graph import START, StateGraph

from skeino import SkeinoSettings
from skeino.persistence import open_persistence
from tests.savers.graphs import config_of


def _appended(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(item for write in writes for item in write)]


class Items(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(_appended, list)]


async def test_the_writes_of_nodes_that_run_at_once_are_replayed_in_their_order(
    durable_settings: SkeinoSettings,
) -> None:
    builder = StateGraph(Items)
    for name in "edcba":
        builder.add_node(name, lambda state, name=name: {"items": [name]})
        builder.add_edge(START, name)

    async with open_persistence(durable_settings) as persistence:
        graph: Any = builder.compile(checkpointer=persistence.checkpointer)
        for number in range(5):  # the ids of tasks are as good as random
            config = config_of(f"t{number}")
            result = await graph.ainvoke({"items": ["input"]}, config)
            assert (await graph.aget_state(config)).values == result
