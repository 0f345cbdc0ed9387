"""A server killed while graphs run, and started again: the process goes on, nothing acknowledged is missing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from langgraph.graph import START, StateGraph

from skeino import SkeinoError, SkeinoSettings, StoreUnavailableError
from skeino_asgi import RunTracker
from tests.contract.backends import MONGODB, POSTGRES, REDIS
from tests.savers.graphs import Saver, State, config_of, said

CHATS = 8
OUTAGE = 3.0
"""Seconds: longer than anybody tries again."""


async def think(state: State) -> State:
    await asyncio.sleep(0.01)
    return said(f"answer to {state['messages'][-1]}")


def thinking(saver: Saver) -> Any:
    """Two nodes that take their time, so that a kill meets graphs on their way."""
    graph = StateGraph(State)
    graph.add_sequence([("think", think), ("think_again", think)])
    graph.add_edge(START, "think")
    return graph.compile(checkpointer=saver)


class Chat:
    """One thread's conversation, which goes on after each failure; and what it was told is stored."""

    def __init__(self, tracker: RunTracker, thread_id: str) -> None:
        self.tracker = tracker
        self.thread_id = thread_id
        self.graph = thinking(tracker.checkpointer)
        self.runs: list[str] = []
        self.answered: list[str] = []
        self.errors: list[Exception] = []

    async def go_on(self) -> None:
        for number in range(1_000_000):
            message = f"message {number}"
            try:
                async with self.tracker.run(thread_id=self.thread_id) as run:
                    self.runs.append(run.run_id)
                    await self.graph.ainvoke(said(message), run.config)
                    self.answered.append(message)
            except Exception as exc:
                self.errors.append(exc)
                await asyncio.sleep(0.05)

    async def says(self, more: int) -> None:
        """Wait until so many more messages were answered."""
        wanted = len(self.answered) + more
        async with asyncio.timeout(60):
            while len(self.answered) < wanted:
                await asyncio.sleep(0.02)

    async def said(self) -> list[str]:
        """The messages that the stored state has."""
        stored = (await self.graph.aget_state(config_of(self.thread_id))).values["messages"]
        return [one for one in stored if one.startswith("message")]


@pytest.fixture(params=[POSTGRES, MONGODB, REDIS])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"private_{request.param}_server")


@pytest.fixture
async def tracker(server: Any, request: pytest.FixtureRequest) -> AsyncIterator[RunTracker]:
    scheme = request.node.callspec.params["server"]
    options = {"connect_timeout": 1.0, "pool_timeout": 1.0}
    settings = SkeinoSettings(
        checkpointer_scheme=scheme,
        checkpointer_uri=server.create_database(),
        checkpointer_options=options,
        allow_ephemeral_metadata=True,
    )
    opened = RunTracker(settings)
    async with opened.lifespan():
        yield opened


async def test_a_killed_server_loses_nothing_acknowledged_and_the_process_recovers(
    tracker: RunTracker, server: Any
) -> None:
    chats = [Chat(tracker, f"t{number}") for number in range(CHATS)]
    going = [asyncio.create_task(chat.go_on()) for chat in chats]
    try:
        await asyncio.gather(*(chat.says(3) for chat in chats))
        for kills in range(1, 6):
            await asyncio.to_thread(server.kill)
            await asyncio.sleep(OUTAGE)
            await asyncio.to_thread(server.start)
            await asyncio.gather(*(chat.says(3) for chat in chats))
            if kills >= 2 and any(chat.errors for chat in chats):  # an outage may be waited for by all of them
                break
    finally:
        for task in going:
            task.cancel()
        await asyncio.gather(*going, return_exceptions=True)

    errors = [error for chat in chats for error in chat.errors]
    assert errors, "the kill met no graph on its way"
    assert {type(error) for error in errors if not isinstance(error, SkeinoError)} == set()
    assert any(isinstance(error, StoreUnavailableError) for error in errors)
    for chat in chats:
        stored = await chat.said()
        assert [one for one in stored if one in chat.answered] == chat.answered
    await ended(tracker)
    for chat in chats:
        rows = [await tracker.metadata_store.get_run(run_id) for run_id in chat.runs]
        assert None not in rows, "a run was started, and its row was lost"
        assert len([row for row in rows if row and row["status"] == "success"]) == len(chat.answered)


async def ended(tracker: RunTracker) -> None:
    """Wait until the ends that could not be written meanwhile are."""
    async with asyncio.timeout(30):
        while await tracker.metadata_store.search_runs(status=["pending", "running"]):
            await asyncio.sleep(0.1)
