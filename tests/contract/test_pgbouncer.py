"""Behind PgBouncer in transaction mode, with the default options: set-up, a graph's run, and thirty at once."""

import asyncio
import operator
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

from skeino import SkeinoSettings
from skeino.testing import finished, the_run, the_thread
from skeino_asgi import RunTracker


class State(TypedDict):
    messages: Annotated[list[str], operator.add]


async def answer(state: State) -> State:
    return {"messages": [f"answer to {state['messages'][-1]}"]}


def builder() -> StateGraph[State, None, State, State]:
    graph = StateGraph(State)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    graph.add_edge("answer", END)
    return graph


async def test_a_pooler_in_transaction_mode_is_no_obstacle(pgbouncer_dsn: str) -> None:
    tracker = RunTracker(SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=pgbouncer_dsn))
    async with tracker.lifespan():
        graph = builder().compile(checkpointer=tracker.checkpointer)
        async with tracker.run(thread_id="t", owner="ann", metadata={"a": 1}) as run:
            state = await graph.ainvoke({"messages": ["one"]}, run.config)
        assert state == {"messages": ["one", "answer to one"]}
        row = await the_run(tracker.metadata_store, run.run_id)
        assert (row["status"], row["checkpoint_count"]) == ("success", 3)
        assert (await the_thread(tracker.metadata_store, "t"))["status"] == "idle"

        async def one(number: int) -> None:
            async with tracker.run(thread_id=f"t{number % 10}") as run:
                await graph.ainvoke({"messages": [str(number)]}, run.config)
            await finished(tracker.metadata_store, f"t{number % 10}")
            await tracker.metadata_store.search_threads(metadata={"a": 1}, status="busy")
            await tracker.metadata_store.update_thread(f"t{number % 10}", metadata={"n": number})

        await asyncio.gather(*(one(number) for number in range(30)))
        rows = await tracker.metadata_store.search_runs()
        assert len(rows) == 61
        assert {row["status"] for row in rows} == {"success"}
        for number in range(10):
            await tracker.persistence.delete_thread(f"t{number}")
        assert len(await tracker.metadata_store.search_runs()) == 1
