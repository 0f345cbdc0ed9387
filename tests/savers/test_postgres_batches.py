"""PostgreSQL: checkpoints and writes that are written together are stored as the stock saver stores them one by one."""

import asyncio
import enum
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import psycopg
import pytest
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import BasePostgresSaver
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from skeino import SkeinoSettings
from skeino.errors import InvalidInputError
from skeino.persistence import open_checkpointer
from skeino.persistence.postgres import StampedPostgresSaver, checkpoints
from skeino.persistence.postgres import writer as writing
from skeino_asgi import RunTracker
from tests.contract.backends import empty
from tests.contract.postgres_writer import sent_by
from tests.savers.graphs import Saver, config_of, plain, said

Call = Callable[[Saver], Awaitable[Any]]


@pytest.fixture
def settings(module_database: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=module_database)


@pytest.fixture
async def saver(settings: SkeinoSettings, module_database: str) -> AsyncIterator[StampedPostgresSaver]:
    async with open_checkpointer(settings) as opened:
        empty(module_database)
        yield cast("StampedPostgresSaver", opened)


@pytest.fixture
def statements(saver: StampedPostgresSaver, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is sent to write, from here on."""
    return sent_by(saver.database.writer, monkeypatch)


def put(thread_id: str, checkpoint_id: str, values: dict[str, Any], **more: Any) -> Call:
    """The call that stores a checkpoint; each channel's version is `version`, or 1."""
    versions = dict.fromkeys(values, more.pop("version", "1.0"))
    checkpoint = empty_checkpoint()
    checkpoint |= {"id": checkpoint_id, "ts": "2026", "channel_values": values, "channel_versions": versions}
    place = {"checkpoint_ns": more.pop("ns", ""), "checkpoint_id": more.pop("parent", None)}
    config = config_of(thread_id, **place)
    config["metadata"] = {"from": "config"}
    new = {**versions, **more.pop("new", {})}
    return lambda saver: saver.aput(config, checkpoint, cast("Any", {"step": 1, "source": "loop", **more}), new)


def put_writes(thread_id: str, checkpoint_id: str, task_id: str, *writes: tuple[str, Any], path: str = "") -> Call:
    config = config_of(thread_id, checkpoint_ns="", checkpoint_id=checkpoint_id)
    return lambda saver: saver.aput_writes(config, cast("Any", deque(writes)), task_id, path)  # as LangGraph has them


class Status(enum.StrEnum):
    BUSY = "büsy"


class Level(str, enum.Enum):  # noqa: UP042 – not any StrEnum
    """Whose members are one text, and have another for their value."""

    def __new__(cls, text: str, value: str) -> "Level":
        member = str.__new__(cls, text)
        member._value_ = value
        return member

    LOW = "low", "its value"


class Number(float):
    def __repr__(self) -> str:
        return "a number"


CALLS: list[Call] = [
    put("a", "1", {"messages": [HumanMessage("ü \x01 '\"{},\\", id="1")], "n": 1, "none": None, "text": "\\u\u2028"}),
    put("a", "2", {"messages": ["x" * 5000], "yes": True, "f": 1e300}, parent="1", version="2.0"),
    put("a", "1", {"messages": ["another"], "n": 2}, parent="0", again=True),  # its parent, and its blob, stay
    put("b", "1", {"delta": _DeltaSnapshot(["a"]), "": {}}, ns="inner|{'x'}"),
    put("b", "1", {}),
    put("b", "2", {"kept": [1]}, new={"gone": "3.0"}),
    put("b", "3", {"kept": ["of the first"]}, version="9.0"),
    put("b", "4", {"kept": ["of the second"]}, version="9.0"),
    put("c", "1", {"bytes": b"\x00\xff", "tuple": (1, {2})}),
    put("d", "1", {"n": 2**70, "whole": 1e22, "more": 1e16, "small": 5e-324, "minus": -0.0}, s=-(2**63), f=1e23),
    put("d", "2", {"n": -(2**63), "status": Status.BUSY, "half": 0.1}, u=2**63 - 1),
    put("d", "3", {"level": Level.LOW}, parents={"": Level.LOW}),
    put("d", "4", {"number": Number(0.5)}, level=Level.LOW),
    put_writes("a", "1", "t1", ("messages", ["one"]), ("n", None), path="~p"),
    put_writes("a", "1", "t1", ("messages", ["two"]), ("n", 3), ("more", {})),  # what is there stays
    put_writes("a", "1", "t2", ("__interrupt__", ["one"])),
    put_writes("a", "1", "t2", ("__interrupt__", ["two"])),  # takes its place
    put_writes("a", "1", "t2", ("__interrupt__", 1), ("__resume__", 2), ("__interrupt__", 3)),
    put_writes("a", "1", "t3", ("a", 1), ("__error__", "x"), ("__error__", "y")),
    put_writes("a", "2", "t3", ("a", b"\x00")),
    put_writes("a", "2", "t4"),
]


async def test_together_they_are_stored_as_the_stock_saver_stores_them_one_by_one(
    saver: StampedPostgresSaver, statements: list[str], module_database: str
) -> None:
    async with AsyncPostgresSaver.from_conn_string(module_database) as theirs:
        returned = [await call(theirs) for call in CALLS]
    expected = raw_rows(module_database)
    assert [len(rows) for rows in expected] == [12, 8, 8]
    empty(module_database)
    assert [await call(saver) for call in CALLS] == returned
    assert raw_rows(module_database) == expected
    empty(module_database)
    statements.clear()
    assert await asyncio.gather(*(call(saver) for call in CALLS)) == returned
    assert raw_rows(module_database) == expected
    assert len(statements) < len(CALLS) - 1


def test_the_stock_saver_has_the_statements_that_ours_stand_for() -> None:
    """If this fails, LangGraph stores something else now: see `checkpoints.py`."""

    def columns(statement: str) -> list[str]:
        return statement.partition("(")[2].partition(")")[0].replace(" ", "").split(",")

    def on_conflict(statement: str) -> str:
        return " ".join(statement.partition("ON CONFLICT")[2].split()).partition(" )")[0].rstrip(";")

    stock = BasePostgresSaver
    assert columns(stock.UPSERT_CHECKPOINT_BLOBS_SQL) == [name.removeprefix("blob_") for name in checkpoints._BLOB]
    assert columns(stock.UPSERT_CHECKPOINTS_SQL) == [*checkpoints._CHECKPOINT]
    assert columns(stock.UPSERT_CHECKPOINT_WRITES_SQL) == [*checkpoints._WRITE]
    assert columns(stock.INSERT_CHECKPOINT_WRITES_SQL) == [*checkpoints._WRITE]
    assert on_conflict(checkpoints.UPSERT_WRITES) == on_conflict(stock.UPSERT_CHECKPOINT_WRITES_SQL)
    assert on_conflict(checkpoints.INSERT_WRITES) == on_conflict(stock.INSERT_CHECKPOINT_WRITES_SQL)
    assert on_conflict(checkpoints.UPSERT_WRITES_OF_ONE) == on_conflict(stock.UPSERT_CHECKPOINT_WRITES_SQL)
    assert on_conflict(checkpoints.INSERT_WRITES_OF_ONE) == on_conflict(stock.INSERT_CHECKPOINT_WRITES_SQL)
    for statement in (checkpoints.PUT_CHECKPOINT, checkpoints.PUT_CHECKPOINTS):
        blobs, _, rows = statement.partition("INSERT INTO checkpoints (")
        assert on_conflict(blobs) == on_conflict(stock.UPSERT_CHECKPOINT_BLOBS_SQL)
        assert on_conflict(rows) == on_conflict(stock.UPSERT_CHECKPOINTS_SQL)


async def test_hundreds_at_once_are_few_statements(saver: StampedPostgresSaver, statements: list[str]) -> None:
    calls = [
        call
        for number in range(200)
        for call in (put(f"t{number}", "1", {"a": [number]}), put_writes(f"t{number}", "1", "task", ("a", number)))
    ]
    await asyncio.gather(*(call(saver) for call in calls))
    assert len(statements) == 4
    for number in (0, 57, 199):
        found = await saver.aget_tuple(config_of(f"t{number}"))
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": [number]}
        assert found.pending_writes == [("task", "a", number)]


async def test_graphs_and_their_runs_share_batches(settings: SkeinoSettings, module_database: str) -> None:
    empty(module_database)
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        graph = plain(tracker.checkpointer)

        async def one(number: int) -> None:
            async with tracker.run(thread_id=f"t{number % 50}") as run:
                await graph.ainvoke(said("hello"), run.config)

        for _ in range(3):
            await asyncio.gather(*(one(number) for number in range(50)))
        runs = await tracker.metadata_store.search_runs(limit=1000)
        assert [(run["status"], run["checkpoint_count"]) for run in runs] == [("success", 3)] * 150
        assert len((await graph.aget_state(config_of("t7"))).values["messages"]) == 6


@pytest.mark.parametrize(
    "call",
    [
        lambda name, bad: put(name, "1", {"a": 1}, **{"not JSON": {1} if bad else 1}),
        lambda name, bad: put_writes(name, "1", "\x00" if bad else "task", ("a", 1)),
        lambda name, bad: put_writes(name, "1", "\x00" if bad else "task", ("__error__", 1)),
        lambda name, bad: put_writes(name, "1", "task", ("\ud800" if bad else "a", 1)),
    ],
)
async def test_what_is_bad_fails_alone(
    saver: StampedPostgresSaver, module_database: str, call: Callable[[str, bool], Call]
) -> None:
    calls = [call(f"t{number}", number == 3) for number in range(20)]
    answers = await asyncio.gather(*(call(saver) for call in calls), return_exceptions=True)
    assert [number for number, answer in enumerate(answers) if isinstance(answer, Exception)] == [3]
    async with AsyncPostgresSaver.from_conn_string(module_database) as theirs:
        failed = (await asyncio.gather(calls[3](theirs), return_exceptions=True))[0]
    assert isinstance(failed, Exception), "the stock saver stores it"
    assert isinstance(answers[3], InvalidInputError)
    assert sum(len(rows) for rows in raw_rows(module_database)) == 19


async def test_a_locked_checkpoint_keeps_no_neighbour_waiting(
    saver: StampedPostgresSaver, module_database: str
) -> None:
    await put("t5", "1", {"a": 1})(saver)
    with psycopg.connect(module_database) as other:
        other.execute("SELECT FROM checkpoints FOR UPDATE")
        puts = [asyncio.ensure_future(put(f"t{number}", "1", {"a": 2})(saver)) for number in range(10)]
        async with asyncio.timeout(3):
            await asyncio.gather(*(one for one in puts if one is not puts[5]))
            await put("another", "1", {"a": 1})(saver)
        assert not puts[5].done()
        puts[5].cancel()
        await asyncio.wait([puts[5]])
    await put("t5", "2", {"a": 3})(saver)
    found = [one.checkpoint["channel_values"] async for one in saver.alist(config_of("t5"))]
    assert found == [{"a": 3}, {"a": 2}]  # the call was cancelled, its write was not


async def test_cancelled_callers_neither_lose_nor_double_a_write(saver: StampedPostgresSaver) -> None:
    calls = [put("t", f"{number:03}", {"a": number}) for number in range(60)]
    puts = [asyncio.ensure_future(call(saver)) for call in calls]
    await asyncio.sleep(0)
    for one in puts[::2]:
        one.cancel()
    await asyncio.gather(*puts, return_exceptions=True)
    assert sum(one.cancelled() for one in puts) == 30
    assert len([one async for one in saver.alist(config_of("t"))]) == 60


async def test_what_is_deleted_does_not_come_back_by_a_cancelled_call(
    saver: StampedPostgresSaver, module_database: str
) -> None:
    for _ in range(5):
        puts = [asyncio.ensure_future(put(f"t{number}", "1", {"a": [1]})(saver)) for number in range(5)]
        await asyncio.sleep(0)
        for one in puts:
            one.cancel()
        await asyncio.gather(*(saver.adelete_thread(f"t{number}") for number in range(5)))
        assert raw_rows(module_database) == [[], [], []]


async def test_large_values_are_bounded_to_a_statement(
    saver: StampedPostgresSaver, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "MAX_BYTES", 100_000)
    await asyncio.gather(*(put(f"t{number}", "1", {"a": [b"x" * 30_000]})(saver) for number in range(10)))
    assert statements == [checkpoints.PUT_CHECKPOINTS] * 3 + [checkpoints.PUT_CHECKPOINT]


async def test_a_large_value_goes_beside_the_others(saver: StampedPostgresSaver, statements: list[str]) -> None:
    large = put("large", "1", {"a": ["x" * writing.LARGE]})
    await asyncio.gather(large(saver), *(put(f"t{number}", "1", {"a": [number]})(saver) for number in range(5)))
    assert sorted(statements) == sorted([checkpoints.PUT_CHECKPOINT, checkpoints.PUT_CHECKPOINTS])
    await asyncio.gather(*(put("large", str(number), {"a": ["x" * writing.LARGE]})(saver) for number in range(2, 9)))
    assert [one.checkpoint["id"] async for one in saver.alist(config_of("large"))] == list("87654321")


async def test_large_values_are_serialized_in_a_thread(
    saver: StampedPostgresSaver, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[bool] = []
    serialize = saver.serde.dumps_typed

    def noting(value: Any) -> Any:
        threads.append(threading.current_thread() is not threading.main_thread())
        return serialize(value)

    monkeypatch.setattr(saver.serde, "dumps_typed", noting)
    values: list[Any] = [["a"], ["x"] * 200, ["x" * 200_000], {"a": [{"b": ["x"] * 200}]}, [HumanMessage("x")] * 30]
    for value in values:
        await put("t", "1", {"a": value})(saver)
        await put_writes("t", "1", "task", ("a", value))(saver)
    assert threads == [False, False, *[True] * 8]


def raw_rows(dsn: str) -> list[list[str]]:
    """The rows of LangGraph's three tables, as the database has them."""
    with psycopg.connect(dsn) as connection:
        return [
            sorted(row for (row,) in connection.execute(f"SELECT t::text FROM {table} t").fetchall())  # type: ignore[arg-type,unused-ignore]
            for table in ("checkpoints", "checkpoint_blobs", "checkpoint_writes")
        ]
