"""What our durable savers read is what LangGraph's own read, in fewer steps, and not all of it at once."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from operator import itemgetter
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.mongodb import MongoDBSaver
from langgraph.graph import START, StateGraph
from langgraph.types import Send

from skeino import SkeinoSettings
from skeino.errors import InvalidInputError
from skeino.persistence import open_checkpointer, open_persistence, paging
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, asking, checkpoints, config_of, fanned_out, nested, plain, said
from tests.savers.statements import counted_statements
from tests.savers.test_stock_savers import stock


@pytest.fixture(params=[1, 2, 3, 100])
def page_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    size: int = request.param
    monkeypatch.setattr(paging, "PAGE", size)
    return size


def _appended(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(item for write in writes for item in write)]


class Items(TypedDict, total=False):
    items: Annotated[list[str], DeltaChannel(_appended, list)]


def with_deltas(saver: Saver) -> Any:
    builder = StateGraph(Items)
    for name in "ba":
        builder.add_node(name, lambda state, name=name: {"items": [name]})
        builder.add_edge(START, name)
    return builder.compile(checkpointer=saver)


async def fill(saver: Saver) -> None:
    await fill_with_old_ones(saver)
    for _ in range(2):
        await plain(saver).ainvoke(said("hello"), config_of("plain"))
    await nested(saver).ainvoke(said("hello"), config_of("nested"))
    await nested(saver, pausing=True).ainvoke(said("hello"), config_of("pausing within"))
    await fanned_out(saver).ainvoke(said("hello"), config_of("fanned out"))
    await asking(saver, questions=2).ainvoke(said("hello"), config_of("asking", user="ada", number=7))
    for _ in range(12):
        await with_deltas(saver).ainvoke({"items": ["input"]}, config_of("deltas"))


async def fill_with_old_ones(saver: Saver) -> None:
    """Checkpoints of a LangGraph whose checkpoints had no channel for what is sent to the next step."""
    for thread_id in ("old", "old too"):
        config = config_of(thread_id, checkpoint_ns="")
        for step in range(3):
            checkpoint: Any = {
                **empty_checkpoint(),
                "v": 1 + step,
                "id": str(uuid6()),
                "channel_values": {"messages": [f"{thread_id}, {step}"], "number": step},
                "channel_versions": {"messages": str(step), "number": str(step)},
            }
            versions: Any = {"messages": str(step)}
            config = await saver.aput(config, checkpoint, {"source": "loop", "step": step}, versions)
            for task in "ba":
                sent = ("__pregel_tasks", Send("answer", said(f"{task} to {thread_id}")))
                await saver.aput_writes(config, [("messages", ["x"]), sent], f"task {task}", f"path {task}")


async def reads(saver: Saver) -> dict[str, list[Any]]:
    """What all kinds of reading find."""
    of_deltas = await listed(saver, config_of("deltas", checkpoint_ns=""))
    middle = (await listed(saver, config_of("plain", checkpoint_ns="")))[2]
    inner = next(one for one in await listed(saver, config_of("nested")) if one.config["configurable"]["checkpoint_ns"])
    graph = with_deltas(saver)
    found: dict[str, list[Any]] = {
        "all": await listed(saver, None),
        "a thread, all its namespaces": await listed(saver, config_of("nested")),
        "a thread's own": await listed(saver, config_of("nested", checkpoint_ns="")),
        "a subgraph's": await listed(
            saver, config_of("nested", checkpoint_ns=inner.config["configurable"]["checkpoint_ns"])
        ),
        "by text": await listed(saver, None, filter={"source": "loop"}),
        "by number": await listed(saver, config_of("asking"), filter={"number": 7}),
        "by both": await listed(saver, None, filter={"source": "input", "step": -1}),
        "by what nobody has": await listed(saver, None, filter={"nothing": "x"}),
        "before": await listed(saver, config_of("plain"), before=middle.config),
        "before, of all": await listed(saver, None, before=middle.config, limit=3),
        "none": await listed(saver, config_of("never")),
        "old": await listed(saver, config_of("old")),
        "each of the old": [await saver.aget_tuple(one.config) for one in await listed(saver, config_of("old too"))],
        "by id": [await saver.aget_tuple(middle.config), await saver.aget_tuple(inner.config)],
        "the latest": [
            await saver.aget_tuple(config_of(name)) for name in ("plain", "nested", "asking", "deltas", "old")
        ],
        "deltas": of_deltas,
        "what deltas make": [(await graph.aget_state(one.config)).values for one in of_deltas],
        "a state": [await plain(saver).aget_state(config_of("plain")), await plain(saver).aget_state(middle.config)],
        "a history": [one async for one in plain(saver).aget_state_history(config_of("plain"), limit=3)],
    }
    for limit in (0, 1, 2, 3, 5, 1000):
        found[f"{limit} of a thread"] = await listed(saver, config_of("nested"), limit=limit)
        found[f"{limit} of its own"] = await listed(saver, config_of("plain", checkpoint_ns=""), limit=limit)
        found[f"{limit} of all"] = await listed(saver, None, limit=limit)
    return found


async def listed(saver: Saver, config: RunnableConfig | None, **arguments: Any) -> list[CheckpointTuple]:
    found = [one async for one in saver.alist(config, **arguments)]
    if isinstance(saver, MongoDBSaver):  # the stock saver has the tasks in the order of their ids
        return [one._replace(pending_writes=sorted(one.pending_writes or [], key=itemgetter(0))) for one in found]
    return found


async def test_what_is_read_is_what_the_stock_saver_reads(locking_settings: SkeinoSettings, page_size: int) -> None:
    async with open_checkpointer(locking_settings) as ours, stock(locking_settings) as theirs:
        await fill(ours)
        expected, found = await reads(theirs), await reads(ours)
        if locking_settings.checkpointer_scheme == "mongodb":
            for name in ("by id", "the latest", "each of the old"):
                for some in (expected, found):
                    some[name] = [
                        one._replace(pending_writes=sorted(one.pending_writes, key=itemgetter(0))) for one in some[name]
                    ]
            del expected["what deltas make"], found["what deltas make"]  # see test_deltas.py
            for name in [name for name in expected if name.startswith("0 of")]:  # which is all, for MongoDB
                del expected[name]
                assert found.pop(name) == []
        if locking_settings.checkpointer_scheme == "postgres":
            # The stock saver looks for what was sent in one thread only, whichever comes first.
            for some in (expected, found):
                for name in [name for name in some if "all" in name.split() or name == "by text"]:
                    some[name] = [
                        one for one in some[name] if not one.config["configurable"]["thread_id"].startswith("old")
                    ]
        for name, answer in expected.items():
            assert found[name] == answer, name
        of_all = await listed(ours, None)
        for thread_id in ("old", "old too", "plain"):
            its_own = [one for one in of_all if one.config["configurable"]["thread_id"] == thread_id]
            assert its_own == await listed(ours, config_of(thread_id))
        assert [name for name, answer in expected.items() if not answer and not name.startswith("0 of")] == [
            "by what nobody has",
            "none",
        ]


async def test_all_checkpoints_are_listed_once_where_threads_share_their_ids(
    locking_settings: SkeinoSettings, page_size: int
) -> None:
    async with open_checkpointer(locking_settings) as saver:
        await nested(saver).ainvoke(said("hello"), config_of("t"))
        for copy in ("a", "b", "z"):
            await saver.acopy_thread("t", copy)
        places = [tuple(one.config["configurable"].values()) for one in await checkpoints(saver, "t")]
        for before in (None, config_of("t", checkpoint_id="f")):
            found = [one async for one in saver.alist(None, before=before)]
            of_all = [tuple(one.config["configurable"].values()) for one in found]
            assert sorted(of_all) == sorted((name, *place[1:]) for name in "abtz" for place in places)
            ids = [one.checkpoint["id"] for one in found]
            assert ids == sorted(ids, reverse=True)


async def test_a_limit_means_the_same_everywhere(tracker: RunTracker, saver: Saver) -> None:
    async with tracker.run(thread_id="t") as run:
        await plain(saver).ainvoke(said("hello"), run.config)
    for config in (config_of("t"), config_of("t", checkpoint_ns=""), None):
        for limit, number in ((0, 0), (1, 1), (2, 2), (100, 3), (None, 3)):
            assert len(await listed(saver, config, limit=limit)) == number
            assert len(await asyncio.to_thread(lambda c, n: list(saver.list(c, limit=n)), config, limit)) == number
        with pytest.raises(InvalidInputError, match="limit is below 0"):
            await listed(saver, config, limit=-1)


async def test_the_synchronous_lists_are_the_same(locking_settings: SkeinoSettings, page_size: int) -> None:
    async with open_checkpointer(locking_settings) as saver:
        for _ in range(2):
            await nested(saver).ainvoke(said("hello"), config_of("t"))
        expected = await checkpoints(saver, "t")
        assert await asyncio.to_thread(lambda: [*saver.list(config_of("t"))]) == expected
        assert await asyncio.to_thread(lambda: [*saver.list(config_of("t"), limit=3)]) == expected[:3]
        assert await asyncio.to_thread(saver.get_tuple, expected[-1].config) == expected[-1]


@pytest.mark.mongodb
@pytest.mark.parametrize("locking_settings", ["mongodb"], indirect=True)
async def test_a_checkpoint_and_its_writes_may_be_larger_than_one_document(locking_settings: SkeinoSettings) -> None:
    async with open_checkpointer(locking_settings) as saver:
        await put(saver, "t", 1)
        (small,) = await checkpoints(saver, "t")
        for task in "ab":
            await saver.aput_writes(small.config, [("messages", task * 9_000_000)], task)
        found = await saver.aget_tuple(config_of("t"))
        assert found is not None
        assert [len(value) for _, _, value in found.pending_writes or []] == [9_000_000, 9_000_000, 1]
        assert await checkpoints(saver, "t") == [found]


# ── How often the database is asked ──────────────────────────────────────────────────────────────────────


async def put(saver: Saver, thread_id: str, length: int) -> None:
    config = config_of(thread_id, checkpoint_ns="")
    for step in range(length):
        checkpoint: Any = {
            **empty_checkpoint(),
            "v": 4,
            "id": str(uuid6()),
            "channel_values": {"messages": [str(step)]},
            "channel_versions": {"messages": str(step)},
        }
        versions: Any = {"messages": str(step)}
        config = await saver.aput(config, checkpoint, {"source": "loop", "step": step}, versions)
        await saver.aput_writes(config, [("messages", ["x"])], "task")


async def drained(found: AsyncIterator[Any]) -> int:
    return len([one async for one in found])


async def test_a_history_takes_as_many_statements_whatever_its_length(locking_settings: SkeinoSettings) -> None:
    async with open_persistence(locking_settings) as persistence:
        saver = persistence.checkpointer
        await put(saver, "t", 60)
        graph = plain(saver)
        await saver.aget_tuple(config_of("t"))  # the first of a connection is told how to plan
        with counted_statements(locking_settings) as count:
            counts = []
            for length in (5, 50):
                before = count()
                assert await drained(saver.alist(config_of("t"), limit=length)) == length
                after_listing = count()
                assert await drained(graph.aget_state_history(config_of("t"), limit=length)) == length
                counts.append((after_listing - before, count() - after_listing))
            assert counts[0] == counts[1] == ((1, 1) if locking_settings.checkpointer_scheme == "postgres" else (2, 2))
            before = count()
            await saver.aget_tuple(config_of("t"))
            assert count() - before == (2 if locking_settings.checkpointer_scheme == "sqlite" else 1)


async def test_a_search_takes_as_many_statements_whatever_it_finds(locking_settings: SkeinoSettings) -> None:
    tracker = RunTracker(locking_settings)
    async with tracker.lifespan():
        for number in range(20):
            async with tracker.run(thread_id=f"t{number}"):
                pass
        await tracker.settled()
        store = tracker.metadata_store
        with counted_statements(locking_settings) as count:
            counts = []
            for limit in (2, 20):
                before = count()
                assert len(await store.search_threads(limit=limit)) == limit
                after_threads = count()
                assert len(await store.search_runs(limit=limit)) == limit
                counts.append((after_threads - before, count() - after_threads))
            assert counts[0] == counts[1]
            assert max(counts[0]) <= 2


async def test_a_delta_channel_s_history_takes_no_statement_for_each_checkpoint(
    locking_settings: SkeinoSettings,
) -> None:
    async with open_checkpointer(locking_settings) as saver:
        graph = with_deltas(saver)
        for _ in range(20):
            await graph.ainvoke({"items": ["input"]}, config_of("t"))
        length = len(await checkpoints(saver, "t"))
        with counted_statements(locking_settings) as count:
            before = count()
            values = (await graph.aget_state(config_of("t"))).values
            assert len(values["items"]) == 60
            assert count() - before < 12 < length


async def test_a_reader_that_takes_ten_of_many_has_not_loaded_them_all(
    locking_settings: SkeinoSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "PAGE", 10)
    loaded: list[Any] = []
    async with open_checkpointer(locking_settings) as saver:
        await put(saver, "t", 40)
        loads = saver.serde.loads_typed

        def counting(data: Any) -> Any:
            loaded.append(data)
            return loads(data)

        monkeypatch.setattr(saver.serde, "loads_typed", counting)
        found = saver.alist(config_of("t"))
        for _ in range(10):
            await anext(found)
        assert 0 < len(loaded) <= 10 * 8
        so_far = len(loaded)
        await saver.adelete_thread("t")  # while the reader is paused: nothing of it waits for the reader
        assert len(loaded) == so_far
        assert [one async for one in found] == []
