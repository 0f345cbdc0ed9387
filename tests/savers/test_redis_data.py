"""What Redis keeps, it keeps as it was put, where it was put; and what is written meanwhile is not lost."""

import asyncio
import re
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel

from skeino import SkeinoSettings
from skeino.errors import ConfigurationError, InvalidInputError, SchemaError
from skeino.persistence import open_checkpointer
from skeino.persistence.redis import history
from tests.contract.test_mongodb_server import fails_to_open
from tests.savers.graphs import checkpoints, config_of, plain, said
from tests.servers.redis import LocalRedisServer, RedisServer


def settings_for(uri: str) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme="redis", checkpointer_uri=uri)


@pytest.fixture
async def saver(redis_dsn: str) -> AsyncIterator[Any]:
    async with open_checkpointer(settings_for(redis_dsn)) as opened:
        yield opened


async def put(saver: Any, thread_id: str, namespace: str = "", **values: Any) -> Any:
    versions = dict.fromkeys(values, "1")
    checkpoint = {**empty_checkpoint(), "channel_values": values, "channel_versions": versions}
    return await saver.aput(config_of(thread_id, checkpoint_ns=namespace), checkpoint, {}, versions)


class Version(NamedTuple):
    major: int
    minor: int
    patch: int


class Invoice(BaseModel):
    sum: Decimal
    tags: set[str]


@dataclass
class Line:
    price: Decimal
    files: list[Path]


# ── Values ───────────────────────────────────────────────────────────────────────────────────────────────

VALUES: dict[str, Any] = {
    "decimal": Decimal("1.10"),
    "timedelta": timedelta(days=1),
    "datetime": datetime(2026, 3, 1, 12, tzinfo=UTC),
    "date": date(2026, 3, 1),
    "uuid": uuid.UUID(int=7),
    "frozenset": frozenset([1, 2]),
    "set": {1, 2},
    "deque": deque([1, 2]),
    "infinite": float("inf"),
    "large": 2**63,
    "keys": {1: "a", None: "b"},
    "bytes": b"\x00\xff",
    "nested": [{"when": datetime(2026, 3, 1, tzinfo=UTC), "sums": [Decimal("0.1"), b"x"]}],
    "a constructor's look": {"lc": 2, "type": "constructor", "id": ["os", "PathLike"], "kwargs": {}},
    "bytes' look": {"__bytes__": "aa"},
    "a send's look": {"__send__": True, "node": "n", "arg": 1},
    "a packed look": {"__msgpack__": ["json", "e30="]},
    "text": "雪 \x01",
    "path": Path("/srv/report.pdf"),
    "address": ip_address("10.0.0.1"),
    "zone": ZoneInfo("Europe/Berlin"),
    "pattern": re.compile("a+"),
    "named tuple": Version(1, 2, 3),
    "set of times": {date(2026, 3, 1)},
    "pydantic": Invoice(sum=Decimal("19.90"), tags={"a", "b"}),
    "dataclass": Line(Decimal("0.10"), [Path("a")]),
    "message": said("hello"),
}


@pytest.mark.parametrize("name", VALUES)
async def test_a_value_is_read_as_it_was_written_as_in_memory(saver: Any, name: str) -> None:
    memory = InMemorySaver()
    for one in (memory, saver):
        stored = await put(one, "t", value=VALUES[name])
        await one.aput_writes(stored, [("value", VALUES[name])], "task")
    expected, found = await memory.aget_tuple(config_of("t")), await saver.aget_tuple(config_of("t"))
    assert expected is not None
    for value in (found.checkpoint["channel_values"]["value"], found.pending_writes[0][2]):
        assert value == expected.checkpoint["channel_values"]["value"] == VALUES[name]
        assert type(value) is type(VALUES[name])


async def test_not_a_number_stays_none(saver: Any) -> None:
    await put(saver, "t", value=float("nan"))
    found = await saver.aget_tuple(config_of("t"))
    assert str(found.checkpoint["channel_values"]["value"]) == "nan"


# ── Ids ──────────────────────────────────────────────────────────────────────────────────────────────────


async def test_spaces_at_an_id_s_ends_tell_threads_apart(saver: Any) -> None:
    ids = ["bob", "bob ", " bob", " bob "]
    for one in ids:
        stored = await put(saver, one, name=one)
        await saver.aput_writes(stored, [("name", one)], "task")
    await saver.acopy_thread("bob", "copy")
    assert [one.checkpoint["channel_values"] for one in await checkpoints(saver, "copy")] == [{"name": "bob"}]
    await saver.adelete_thread("bob ")
    await saver.aprune([" bob"], strategy="delete")
    for one in ids:
        values = [(found.checkpoint["channel_values"], found.pending_writes) for found in await checkpoints(saver, one)]
        expected = [({"name": one}, [("task", "name", one)])] if one in ("bob", " bob ") else []
        assert values == expected


async def test_a_colon_opens_no_way_into_another_thread(saver: Any) -> None:
    await put(saver, "ada", "a:sub", secret="ada's")
    assert await saver.aget_tuple(config_of("ada:a", checkpoint_ns="sub")) is None
    found = await saver.aget_tuple(config_of("ada", checkpoint_ns="a:sub"))
    assert found.checkpoint["channel_values"] == {"secret": "ada's"}
    await put(saver, "user:1", note="mine")
    assert (await saver.aget_tuple(config_of("user:1"))).checkpoint["channel_values"] == {"note": "mine"}


async def test_what_stands_for_an_empty_id_is_refused(saver: Any) -> None:
    with pytest.raises(InvalidInputError, match="choose another"):
        await put(saver, "t", "__empty__")
    with pytest.raises(InvalidInputError, match="choose another"):
        await put(saver, "00000000-0000-0000-0000-000000000000")


# ── Meanwhile ────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_checkpoint_that_comes_while_others_are_deleted_stays_the_latest(
    saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await put(saver, "t", number=number)
    turn = history._turn_pointer

    async def late(*arguments: Any) -> None:
        await put(saver, "t", number="late")
        await turn(*arguments)

    monkeypatch.setattr(history, "_turn_pointer", late)
    await saver.aprune(["t"])
    found = await saver.aget_tuple(config_of("t"))
    assert found.checkpoint["channel_values"] == {"number": "late"}


async def test_what_is_written_anew_while_a_list_is_read_is_neither_left_out_nor_there_twice(
    saver: Any, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "_PAGE", 5)
    stored = [await put(saver, "t", number=number) for number in range(30)]
    client = saver.database.client
    original = type(client.ft("x")).aggregate
    disturbances = [stored[:5], stored[8:12]]  # pages that were read, and some that are to come

    async def disturbed(self: Any, *arguments: Any, **named: Any) -> Any:
        answer = await original(self, *arguments, **named)
        for config in disturbances.pop() if disturbances else ():
            await saver.aput_writes(config, [("number", 0)], "task")
        return answer

    monkeypatch.setattr(type(client.ft("x")), "aggregate", disturbed)
    assert [one.config for one in await checkpoints(saver, "t")] == stored[::-1]


async def test_a_copy_that_is_cancelled_can_be_made_again(saver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_PAGE", 5)
    for number in range(40):
        await put(saver, "t", number=number)
    for delay in (0.0, 0.005, 0.01, 0.02):
        copying = asyncio.create_task(saver.acopy_thread("t", "copy"))
        await asyncio.sleep(delay)
        copying.cancel()
        await asyncio.wait([copying])
        assert len(await checkpoints(saver, "copy")) in (0, 40)
        await saver.adelete_thread("copy")
    await saver.acopy_thread("t", "copy")
    assert len(await checkpoints(saver, "copy")) == 40


async def test_a_copy_has_a_latest_checkpoint_though_the_thread_goes_on(
    saver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(saver, "t", number=1)
    search = history._search

    async def overtaken(saver_: Any, index: str, wanted: dict[str, str], fields: Any) -> Any:
        found = await search(saver_, index, wanted, fields)
        if (index, wanted) == (saver.checkpoints_index.name, {"thread_id": "t"}):
            await put(saver, "t", number=2)
        return found

    monkeypatch.setattr(history, "_search", overtaken)
    await saver.acopy_thread("t", "copy")
    monkeypatch.undo()
    found = await saver.aget_tuple(config_of("copy"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"number": 1}


async def test_a_copy_that_fails_leaves_nothing(saver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(saver, "t", number=1)

    async def broken(*arguments: Any) -> None:
        await real(*arguments)
        raise RuntimeError("the disk is full")

    real = history._copy
    monkeypatch.setattr(history, "_copy", broken)
    with pytest.raises(RuntimeError):
        await saver.acopy_thread("t", "copy")
    monkeypatch.undo()
    assert await checkpoints(saver, "copy") == []
    await saver.acopy_thread("t", "copy")
    assert len(await checkpoints(saver, "copy")) == 1


async def test_writes_without_their_checkpoint_are_no_checkpoint(
    saver: Any, redis_server: RedisServer, redis_dsn: str
) -> None:
    config = config_of("t", checkpoint_ns="", checkpoint_id=str(uuid.uuid4()))
    await saver.aput_writes(config, [("value", 1)], "task")
    assert await saver.aget_tuple(config) is None
    assert [one async for one in saver.alist(None)] == []
    await saver.adelete_thread("t")
    with redis_server.client() as client:
        assert [*client.scan_iter("*:t:*")] == []


# ── The server ───────────────────────────────────────────────────────────────────────────────────────────


async def test_indexes_that_were_flushed_away_are_named(private_redis_server: LocalRedisServer) -> None:
    async with open_checkpointer(settings_for(private_redis_server.create_database())) as saver:
        await plain(saver).ainvoke(said("hello"), config_of("t"))
        with private_redis_server.client() as client:
            client.flushall()
        with pytest.raises(SchemaError, match="setup_schema=True"):
            await checkpoints(saver, "t")


async def test_what_the_uri_may_not_choose(redis_dsn: str) -> None:
    exc = await fails_to_open(
        settings_for(f"{redis_dsn}?protocol=3").model_copy(update={"allow_ephemeral_metadata": True})
    )
    assert isinstance(exc, ConfigurationError)
    assert "protocol" in str(exc)
    async with open_checkpointer(settings_for(f"{redis_dsn}?socket_timeout=1")) as saver:
        assert saver.database.client.connection_pool.connection_kwargs["socket_timeout"] is None  # type: ignore[attr-defined]
