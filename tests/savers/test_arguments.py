"""What a client's words in a config or a filter cannot do: the same is refused on every backend."""

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from langgraph.checkpoint.base import empty_checkpoint

from skeino.errors import InvalidInputError
from skeino.persistence.arguments import MAX_NAMESPACE_CHARACTERS
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, checkpoints, config_of, plain, said

NO_TEXT: list[Any] = [0, 1, False, True, None, [], {}, ["x"], {"$ne": ""}, b"x", "a\x00b", "\ud800"]
NO_NAMESPACE: list[Any] = [*NO_TEXT, "x" * (MAX_NAMESPACE_CHARACTERS + 1)]
NO_CHECKPOINT_ID: list[Any] = ["", *(bad for bad in NO_TEXT if bad is not None), "x" * 256, "a\nb"]
NO_CONFIG: list[Any] = ["x", 7, ["thread_id"], {"configurable": "x"}, {"configurable": ["thread_id"]}]
NO_METADATA: list[Any] = [
    *({"k": bad} for bad in (math.nan, math.inf, 2**63, -(2**63) - 1, 10**400, "\ud800")),
    *({bad: 1} for bad in ("a\x00b", "\ud800", 1, b"k")),
]
NO_JSON: list[Any] = [*({"k": bad} for bad in (b"x", {1}, [math.nan], {"a": "\x00"}, {"a": {1: 2}}, object()))]
NO_FILTER: list[Any] = [
    *NO_METADATA,
    *NO_JSON,
    *({bad: 1} for bad in ("", "a'b", "a b", 'a"', "a\n", "$where", "k') OR 1=1 --", "雪")),
    *({"k": bad} for bad in ("\x00", {"$gt": ""}, {"a": {"$ne": 1}}, [{"$gt": 1}])),
    "source",
    ["source"],
    [("source", "loop")],
    7,
]
NO_BEFORE: list[Any] = [
    *NO_CONFIG,
    {},
    *({"configurable": {"checkpoint_id": bad}} for bad in [None, *NO_CHECKPOINT_ID]),
]


async def refused(call: Callable[[Any], Awaitable[object]], values: list[Any]) -> None:
    """Each value is refused with one of skeino's own errors, whose sentence does not grow with it."""
    problems = []
    for number, value in enumerate(values):
        try:
            await call(value)
        except InvalidInputError as exc:
            if len(str(exc)) > 300:
                problems.append(f"value {number} is repeated in the message")
        except Exception as exc:
            problems.append(f"value {number}, {ascii(value)[:60]}, raised {exc!r}"[:200])
        else:
            problems.append(f"value {number}, {ascii(value)[:60]}, was accepted")
    assert not problems


async def listed(saver: Saver, *arguments: Any, **named: Any) -> list[Any]:
    return [one async for one in saver.alist(*arguments, **named)]


@pytest.fixture
async def kept(saver: Saver) -> Saver:
    """A saver with a thread that stays as it is."""
    await plain(saver).ainvoke(said("hello"), config_of("kept"))
    return saver


async def test_a_place_is_named_by_text(kept: Saver) -> None:
    before = await checkpoints(kept, "kept")
    checkpoint = empty_checkpoint()
    for name, values in (("checkpoint_ns", NO_NAMESPACE), ("checkpoint_id", NO_CHECKPOINT_ID)):

        def place(bad: Any, name: str = name) -> Any:
            return {"configurable": {"thread_id": "kept", "checkpoint_ns": "", name: bad}}

        for operate in (
            lambda bad: kept.aget_tuple(place(bad)),
            lambda bad: listed(kept, place(bad)),
            lambda bad: kept.aput(place(bad), checkpoint, {}, {}),
            lambda bad: kept.aput_writes(place(bad), [("x", 1)], "task"),
            lambda bad: kept.aget_delta_channel_history(config=place(bad), channels=["x"]),
            lambda bad: asyncio.to_thread(kept.get_tuple, place(bad)),
            lambda bad: asyncio.to_thread(lambda: list(kept.list(place(bad)))),
        ):
            await refused(operate, values)
    of_configs: list[Callable[[Any], Awaitable[object]]] = [
        kept.aget_tuple,
        lambda bad: listed(kept, bad),
        lambda bad: kept.aput(bad, checkpoint, {}, {}),
    ]
    for call in of_configs:
        await refused(call, NO_CONFIG)
    await refused(lambda bad: listed(kept, bad), [{"configurable": {"checkpoint_ns": {"$ne": ""}}}])
    assert await checkpoints(kept, "kept") == before


async def test_metadata_that_is_no_json_is_refused_wherever_it_comes_from(kept: Saver) -> None:
    """On SQLite one NaN, from a client's `configurable`, made each later search by metadata fail, for everybody."""
    checkpoint = empty_checkpoint()
    config: dict[str, Any] = {"configurable": {"thread_id": "bad", "checkpoint_ns": ""}}
    await refused(lambda bad: kept.aput(cast("Any", config), checkpoint, bad, {}), [*NO_METADATA, *NO_JSON])
    await refused(lambda bad: kept.aput(cast("Any", {**config, "metadata": bad}), checkpoint, {}, {}), NO_METADATA)
    await refused(
        lambda bad: kept.aput({"configurable": {**config["configurable"], **bad}}, checkpoint, {}, {}), NO_METADATA
    )
    await refused(lambda bad: kept.aput(cast("Any", {**config, "metadata": bad}), checkpoint, {}, {}), ["x", 7, [1]])
    assert await checkpoints(kept, "bad") == []
    assert len(await listed(kept, None, filter={"source": "input"})) == 1


async def test_what_langgraph_does_not_copy_into_metadata_may_be_anything(kept: Saver) -> None:
    config: Any = config_of(
        "odd", checkpoint_ns="", __odd__=math.nan, tool=object(), text="a\x00b", options={"$set": 1}
    )
    await kept.aput(config, empty_checkpoint(), {"source": "input", "step": 1}, {})
    (found,) = await checkpoints(kept, "odd")
    metadata: Any = found.metadata
    assert metadata.get("text", "ab") == "ab"  # LangGraph's savers leave NULs out; Redis, the text


async def test_a_filter_is_a_json_object_with_plain_names(kept: Saver) -> None:
    await refused(lambda bad: listed(kept, None, filter=bad), NO_FILTER)
    await refused(lambda bad: listed(kept, config_of("kept"), filter=bad), NO_FILTER)
    assert len(await listed(kept, None, filter={"source": "loop", "step": 1})) == 1
    assert len(await listed(kept, None, filter={})) == 3


async def test_a_list_s_bounds_are_a_number_and_a_checkpoint(kept: Saver) -> None:
    await refused(lambda bad: listed(kept, config_of("kept"), limit=bad), ["5", 1.5, True, "1; DROP TABLE x", [1], {}])
    await refused(lambda bad: listed(kept, config_of("kept"), before=bad), NO_BEFORE)


async def test_pending_writes_name_their_task_and_their_channels_by_text(kept: Saver) -> None:
    config: Any = config_of("kept", checkpoint_ns="", checkpoint_id="c")
    await refused(lambda bad: kept.aput_writes(config, [("x", 1)], bad), NO_TEXT)
    await refused(lambda bad: kept.aput_writes(config, [("x", 1)], "task", bad), NO_TEXT)
    await refused(lambda bad: kept.aput_writes(config, [(bad, 1)], "task"), NO_TEXT)
    await refused(lambda bad: kept.aput_writes(config_of("kept"), [("x", 1)], "task"), [None])


async def test_a_checkpoint_s_id_is_an_id(kept: Saver) -> None:
    before = await checkpoints(kept, "kept")
    config: Any = config_of("kept", checkpoint_ns="")
    await refused(lambda bad: kept.aput(config, {**empty_checkpoint(), "id": bad}, {}, {}), [None, *NO_CHECKPOINT_ID])
    assert await checkpoints(kept, "kept") == before


async def test_what_is_no_list_of_ids_deletes_nothing(kept: Saver) -> None:
    saver: Any = kept
    before = await checkpoints(kept, "kept")
    values: list[Any] = [
        "kept",
        None,
        7,
        [None],
        [["kept"]],
        [{"$ne": ""}],
        {"kept": 1},
        iter(["kept"]),
        ["kept", "\x00"],
    ]
    await refused(saver.adelete_for_runs, values)
    await refused(saver.aprune, values)
    await refused(lambda bad: saver.aprune(bad, strategy="delete"), values)
    assert await checkpoints(kept, "kept") == before


@pytest.mark.parametrize("value", ["a\x00b", "\x00", "x\ud800", "\udfff雪", math.nan, math.inf, -math.inf], ids=ascii)
async def test_a_client_s_text_or_number_is_state_on_every_backend(saver: Saver, value: Any) -> None:
    """PostgreSQL refused such a message, where it was a channel by itself. LangGraph's serializer has "?" for a lone
    surrogate, everywhere.
    """
    config: Any = config_of("t", checkpoint_ns="")
    versions: Any = {"x": "1.0", "plain": "1.0"}
    checkpoint: Any = empty_checkpoint() | {"channel_values": {"x": value, "plain": "雪"}, "channel_versions": versions}
    stored = await saver.aput(config, checkpoint, {}, versions)
    later: Any = empty_checkpoint() | {"channel_values": checkpoint["channel_values"], "channel_versions": versions}
    await saver.aput(stored, later, {}, {})  # the value has not changed
    for found in await checkpoints(saver, "t"):
        values = found.checkpoint["channel_values"]
        assert values["plain"] == "雪"
        if isinstance(value, str):
            assert values["x"] == "".join("?" if "\ud800" <= one <= "\udfff" else one for one in value)
        else:
            assert str(values["x"]) == str(value)


async def test_a_config_s_metadata_that_is_none_does_not_hinder_reading(tracker: RunTracker, kept: Saver) -> None:
    class Silent:
        def __str__(self) -> str:
            raise RuntimeError

    for metadata in ("x", b"x", 7, [1], {"run_id": Silent()}, {"run_id": 7}):
        async with tracker.run():
            config: Any = {**config_of("kept"), "metadata": metadata}
            assert await kept.aget_tuple(config) is not None


@pytest.mark.parametrize("odd", [["x"], {"$ne": 1}, 7, True], ids=repr)
async def test_odd_metadata_of_one_checkpoint_does_not_hinder_the_deletion_of_others(saver: Saver, odd: Any) -> None:
    """In memory, one such `run_id` made each later deletion by run fail, for everybody."""
    config: Any = config_of("t", checkpoint_ns="")
    for namespace in ("", "a:b"):
        place: Any = config_of("t", checkpoint_ns=namespace)
        for metadata in ({"run_id": odd, "parents": {"": odd}}, {"run_id": "mine", "parents": {"": odd}}):
            await saver.aput(place, empty_checkpoint(), cast("Any", metadata), {})
    await saver.adelete_for_runs(["mine"])
    assert [cast("Any", one.metadata)["run_id"] for one in await checkpoints(saver, "t")] == [odd, odd]
    await saver.aput(config, empty_checkpoint(), {}, {})
    await saver.aprune(["t"])
    assert len(await checkpoints(saver, "t")) == 2
