"""State is carried as it is, whatever it is made of."""

import json
import math
import pickle
import sqlite3
from contextlib import closing
from typing import Any

import pytest
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot
from langgraph.types import Send

from skeino import InvalidInputError, SkeinoSettings
from skeino.copying import copy_persistence
from skeino.copying.listing import in_places
from skeino.copying.serializer import Extension, OpaqueSerializer, Sealed, sealed
from skeino.copying.versions import with_versions
from skeino.persistence import open_persistence
from skeino.persistence.inventory import StoredWrite
from skeino.testing import at
from tests.copying.conftest import Places
from tests.copying.house import application
from tests.savers.graphs import config_of

OPAQUE = OpaqueSerializer()


def values() -> list[Any]:
    with application() as module:
        door = module.Door(0.9, module.Colour.RED)
        return [
            None,
            b"\x00",
            bytearray(b"\xff"),
            True,
            -(2**63),
            2**64 - 1,
            1.0,
            -0.0,
            math.inf,
            "\x00 \N{SNOWMAN}",
            [door, {1: (2, 3), "x": {4, 5}, None: at(1)}],
            {"deep": [module.Room(name="hall", doors=[door])]},
            [Send("node", {"door": door})],
            _DeltaSnapshot([door, "x"]),
            {"nested": _DeltaSnapshot({"a": _DeltaSnapshot([1])})},
        ]


@pytest.mark.parametrize("number", range(len(values())))
def test_what_was_read_is_written_again_byte_for_byte(number: int) -> None:
    with application():
        stored = JsonPlusSerializer().dumps_typed(values()[number])
    assert OPAQUE.dumps_typed(OPAQUE.loads_typed(stored)) == stored


def test_objects_are_not_made_and_snapshots_are_seen() -> None:
    with application() as module:
        kind, data = JsonPlusSerializer().dumps_typed({"door": module.Door(0.9, module.Colour.RED)})
    read = OPAQUE.loads_typed((kind, data))
    assert isinstance(read["door"], Extension)
    assert isinstance(OPAQUE.loads_typed(JsonPlusSerializer().dumps_typed(_DeltaSnapshot([1]))), _DeltaSnapshot)


def test_older_and_encrypted_formats_pass_as_they_are_where_they_stand_alone() -> None:
    for stored in [("pickle", pickle.dumps({1})), ("msgpack+aes", b"\x01\x02"), ("json", b'{"lc": 2, "id": ["x"]}')]:
        read = OPAQUE.loads_typed(stored)
        assert isinstance(read, Sealed)
        assert OPAQUE.dumps_typed(read) == stored
    assert OPAQUE.loads_typed(("json", b'{"a": [1]}')) == {"a": [1]}


def test_within_another_value_an_older_format_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="older or an encrypted format"):
        OPAQUE.dumps_typed({"a": Sealed("pickle", b"")})
    assert OPAQUE.dumps_typed({"a": sealed(1.5)}) == OPAQUE.dumps_typed({"a": 1.5})


@pytest.mark.postgres
@pytest.mark.parametrize(
    "value", [math.nan, math.inf, 1e23, -0.0, "\x00", "text", 2**62, True, None, b"\x00"], ids=repr
)
async def test_plain_values_that_json_would_change_arrive_in_postgresql(place: Places, value: Any) -> None:
    source, target = place("sqlite"), place("postgres")
    await put(source, value)

    report = await copy_persistence(source, target)

    assert report.verified, report.differences
    async with open_persistence(target) as there:
        found = await there.checkpointer.aget_tuple(config_of("t1"))
    assert found is not None
    assert repr(found.checkpoint["channel_values"]["x"]) == repr(value)


@pytest.mark.postgres
async def test_metadata_that_cannot_be_stored_is_reported(place: Places) -> None:
    source, target = place("sqlite"), place("postgres")
    await put(source, 1)
    assert source.checkpointer_uri is not None
    path = source.checkpointer_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as file:  # as the stock saver would have written it
        file.execute("UPDATE checkpoints SET metadata = ?", (json.dumps({"deep": {"nul": "\x00"}}).encode(),))
        file.commit()
    report = await copy_persistence(source, target)
    assert len(report.differences) == 2
    assert report.differences[0].startswith("The state of thread 't1' was not copied completely: the checkpoint's")


async def put(settings: SkeinoSettings, value: Any) -> None:
    """A checkpoint with one value."""
    checkpoint: Any = {
        "v": 4,
        "id": "1f1e8975-b168-6c44-8004-d067574eba08",
        "ts": "2026-03-01T12:00:00+00:00",
        "channel_values": {"x": value},
        "channel_versions": {"x": "00000000000000000000000000000001.0.5"},
        "versions_seen": {},
        "updated_channels": None,
    }
    async with open_persistence(settings) as opened:
        await opened.checkpointer.aput(config_of("t1", checkpoint_ns=""), checkpoint, {}, {})


def test_versions_keep_their_order_and_tell_branches_apart() -> None:
    def checkpoint(value: str) -> Any:
        return {
            "channel_values": {"a": value, "b": 1},
            "channel_versions": {"a": 10, "b": 9, "c": 9},
            "versions_seen": {"node": {"a": 9, "b": 9}, "empty": {}},
        }

    left, right = (with_versions(checkpoint(one), texts=True, dump=OPAQUE.dumps_typed) for one in ("left", "right"))

    versions: Any = left["channel_versions"]
    seen: Any = left["versions_seen"]
    assert versions["a"] > versions["b"]
    assert versions["a"] > seen["node"]["a"]
    assert versions["b"] == seen["node"]["b"]
    assert versions["a"] != right["channel_versions"]["a"]
    assert versions["b"] == right["channel_versions"]["b"]
    back: Any = with_versions(left, texts=False, dump=OPAQUE.dumps_typed)
    assert back["channel_versions"] == checkpoint("left")["channel_versions"]
    assert back["versions_seen"] == checkpoint("left")["versions_seen"]
    assert with_versions(left, texts=True, dump=OPAQUE.dumps_typed) == left


def test_the_places_of_a_tasks_writes_are_counted_again_as_they_were() -> None:
    def write(idx: int, channel: str) -> StoredWrite:
        return StoredWrite("task", "path", idx, channel, "null", b"")

    first, special, third, last = write(0, "a"), write(-4, "__resume__"), write(2, "b"), write(-1, "__error__")
    assert in_places([last, special, first, third]) == [first, last, third, special]
    assert in_places([third]) == [third]
