"""What no backend would store faithfully is refused on each of them, before anything is written."""

import math
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any, cast

import pytest
import pytest_asyncio

from skeino.errors import InvalidInputError
from skeino.persistence import MetadataStoreProtocol
from skeino.runs import new_id
from skeino.testing.making import T0, WORKER, ending, everything, started

BAD_TEXT: list[Any] = [
    "",
    " ",
    "x" * 256,
    "a\x00b",
    "\ud800",
    "a\nb",
    "\x7f",
    "a\u2028b",
    b"t",
    1,
    True,
    1.5,
    ["t"],
    {},
]
BAD_IDS: list[Any] = [*BAD_TEXT, None]
BAD_RUN_IDS: list[Any] = [*BAD_IDS, "run", "{}", new_id().upper(), new_id().replace("-", ""), f"urn:uuid:{new_id()}", 7]


class Unprintable:
    """No JSON, and no text either."""

    def __repr__(self) -> str:
        raise RuntimeError


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"d": value}
    return value


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR
BAD_JSON: list[Any] = [
    *({"v": bad} for bad in (math.nan, math.inf, -math.inf, 2**63, -(2**63) - 1, 10**400)),
    *({"v": bad} for bad in ("a\x00b", "\udfff", b"x", {1}, 1j, object(), Unprintable(), T0, [[math.nan]], {1: 2})),
    *({bad: 1} for bad in (1, None, True, b"k", ("k",), "\x00", "\ud800")),
    nested(40),
    CIRCULAR,
    {"v": "x" * (256 * 1024)},
    {"v": "雪" * (90 * 1024)},
    {"v": [1] * (40 * 1024)},
    {"v": [[] for _ in range(100_000)]},
    {"v": {str(number): {} for number in range(100_000)}},
    [("k", "v")],
    "text",
    7,
]
NOT_EMPTY_BUT_NO_MAPPING: list[Any] = [[], "", 0, False]
BAD_TIMES: list[Any] = [
    datetime(2026, 1, 1),  # noqa: DTZ001 – that is the point
    T0.date(),
    T0.isoformat(),
    T0.timestamp(),
    datetime.min.replace(tzinfo=UTC),  # no time zone's reader could show them
    datetime.max.replace(tzinfo=UTC),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=1))),
    datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))),
]
BAD_TTLS: list[Any] = [
    {},
    {"strategy": "delete"},
    {"ttl": 1},
    {"strategy": "drop", "ttl": 1},
    *({"strategy": "delete", "ttl": bad} for bad in (0, -1, math.nan, math.inf, "1", True, None, 10**400)),
    {"strategy": "delete", "ttl": 1, "more": 1},
    7,
    "delete",
]
BAD_SEARCHES: list[tuple[str, list[Any]]] = [
    ("limit", [0, -1, 1001, 1.0, True, "5", None, 10**400]),
    ("offset", [-1, 2**31, 1.0, True, "0", None]),
    ("sort_by", ["", "metadata", "owner; DROP TABLE app_runs", None, 1, ["created_at"]]),
    ("sort_order", ["", "up", "DESC", None, 1]),
    ("status", ["", "done", ["done"], [None], [["idle"]], b"idle", 5, object()]),
    ("owner", [*BAD_TEXT]),
    ("metadata", [*BAD_JSON, {"v": []}, {"v": {}}, {"v": [1]}, {"v": {"a": 1}}, *NOT_EMPTY_BUT_NO_MAPPING]),
    ("created_after", BAD_TIMES),
    ("created_before", BAD_TIMES),
]


class ValidationContract:
    """What no backend would store faithfully is refused, and nothing is written."""

    @pytest_asyncio.fixture
    async def untouched(self, store: MetadataStoreProtocol) -> Any:
        """`untouched(call, values)`: each value is refused, and nothing is written by any of them."""
        await started(store, "existing", owner="ann", metadata={"k": 1})
        await store.create_thread("free")
        before = await everything(store)

        async def refuses(call: Callable[[Any], Awaitable[object]], values: list[Any]) -> None:
            problems = []
            for number, value in enumerate(values):
                shown = f"value {number}, {_shown(value)},"
                try:
                    await call(value)
                except InvalidInputError as exc:
                    if not 0 < len(str(exc)) < 400:
                        problems.append(f"{shown} is repeated in the message")
                except Exception as exc:  # named, because a table of values has no line of its own
                    problems.append(f"{shown} raised {exc!r}"[:200])
                else:
                    problems.append(f"{shown} was accepted")
                if await everything(store) != before:
                    problems.append(f"{shown} was written, in part at least")
                    break
            assert not problems

        return refuses

    async def test_bad_thread_ids_are_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        optional = [bad for bad in BAD_IDS if bad is not None]
        await untouched(lambda bad: store.start_run(new_id(), worker_id="w", thread_id=bad), optional)
        await untouched(
            lambda bad: store.start_run(new_id(), worker_id="w", thread_id=bad, create_thread=False), optional
        )
        await untouched(lambda bad: store.attach_thread(new_id(), bad, owner=None), BAD_IDS)
        await untouched(lambda bad: store.finish_run(ending(new_id(), thread_id=bad)), optional)
        await untouched(lambda bad: store.search_runs(thread_id=bad), optional)
        await untouched(lambda bad: store.create_thread(bad), BAD_IDS)
        await untouched(lambda bad: store.create_thread(bad, if_exists="do_nothing"), BAD_IDS)
        await untouched(lambda bad: store.get_thread(bad), BAD_IDS)
        await untouched(lambda bad: store.update_thread(bad, metadata={}), BAD_IDS)
        await untouched(lambda bad: store.delete_thread(bad, force=True), BAD_IDS)
        await untouched(lambda bad: store.search_threads(ids=["existing", bad]), BAD_IDS)

    async def test_bad_run_ids_are_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        await untouched(lambda bad: store.start_run(bad, worker_id="w", thread_id="new"), BAD_RUN_IDS)
        await untouched(lambda bad: store.attach_thread(bad, "new", owner=None), BAD_RUN_IDS)
        await untouched(lambda bad: store.finish_run(ending(bad)), BAD_RUN_IDS)
        await untouched(lambda bad: store.get_run(bad), BAD_RUN_IDS)
        await untouched(lambda bad: store.update_run(bad, metadata={}), BAD_RUN_IDS)
        await untouched(lambda bad: store.search_runs(ids=[new_id(), bad]), BAD_RUN_IDS)
        optional = [bad for bad in BAD_RUN_IDS if bad is not None]
        await untouched(lambda bad: store.delete_thread("free", ignore_run=bad), optional)

    async def test_bad_collections_of_ids_are_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        too_many = [new_id() for _ in range(1001)]
        await untouched(lambda bad: store.search_threads(ids=bad), ["existing", 7, object(), too_many])
        await untouched(lambda bad: store.search_runs(ids=bad), [new_id(), 7, object(), too_many])

    async def test_bad_owners_and_workers_are_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        missing = new_id()
        await untouched(lambda bad: store.start_run(new_id(), worker_id=bad), BAD_IDS)
        await untouched(lambda bad: store.start_run(new_id(), worker_id="w", thread_id="new", owner=bad), BAD_TEXT)
        await untouched(lambda bad: store.attach_thread(new_id(), "new", owner=bad), BAD_TEXT)
        await untouched(lambda bad: store.create_thread("new", owner=bad), BAD_TEXT)
        for thread_id in ("free", "missing"):
            await untouched(lambda bad, thread_id=thread_id: store.get_thread(thread_id, owner=bad), BAD_TEXT)
            await untouched(lambda bad, thread_id=thread_id: store.update_thread(thread_id, owner=bad), BAD_TEXT)
            await untouched(lambda bad, thread_id=thread_id: store.delete_thread(thread_id, owner=bad), BAD_TEXT)
        await untouched(lambda bad: store.get_run(missing, owner=bad), BAD_TEXT)
        await untouched(lambda bad: store.update_run(missing, metadata={}, owner=bad), BAD_TEXT)

    async def test_bad_workers_end_no_run(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        await untouched(lambda bad: store.finish_run(ending(new_id(), worker_id=bad)), BAD_IDS)
        error: Any = {"code": "c", "type": None, "message": "m"}
        await untouched(lambda bad: store.interrupt_runs(bad, error), BAD_IDS)

    async def test_bad_json_is_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        run_id = (await store.search_runs())[0]["run_id"]
        await untouched(lambda bad: store.start_run(new_id(), worker_id="w", thread_id="new", metadata=bad), BAD_JSON)
        await untouched(lambda bad: store.start_run(new_id(), worker_id="w", thread_id="new", kwargs=bad), BAD_JSON)
        await untouched(lambda bad: store.finish_run(ending(run_id, metadata=bad)), BAD_JSON)
        await untouched(lambda bad: store.update_run(run_id, metadata=bad), BAD_JSON)
        await untouched(lambda bad: store.create_thread("new", metadata=bad), BAD_JSON)
        await untouched(lambda bad: store.create_thread("new", config=bad), BAD_JSON)
        await untouched(lambda bad: store.update_thread("existing", metadata=bad), BAD_JSON)
        await untouched(lambda bad: store.update_thread("existing", config=bad), BAD_JSON)

    async def test_an_empty_value_that_is_no_mapping_is_refused(
        self, store: MetadataStoreProtocol, untouched: Any
    ) -> None:
        empty = NOT_EMPTY_BUT_NO_MAPPING
        await untouched(lambda bad: store.start_run(new_id(), worker_id="w", metadata=bad), empty)
        await untouched(lambda bad: store.start_run(new_id(), worker_id="w", kwargs=bad), empty)
        await untouched(lambda bad: store.create_thread("new", config=bad), empty)
        await untouched(lambda bad: store.update_thread("existing", metadata=bad), empty)

    async def test_bad_ttls_and_choices_are_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        await untouched(lambda bad: store.create_thread("new", ttl=bad), BAD_TTLS)
        await untouched(lambda bad: store.update_thread("existing", ttl=bad), BAD_TTLS)
        await untouched(lambda bad: store.create_thread("existing", owner="ann", if_exists=bad), ["ignore", None, 1])

    async def test_a_bad_end_is_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        run_id = (await store.search_runs())[0]["run_id"]
        for field, values in (
            ("status", ["running", "pending", "done", "", None, 1, ["success"]]),
            ("thread_status", ["busy", "done", "", 1, ["idle"]]),
            ("finished_at", [*BAD_TIMES, None]),
            ("http_status", [99, 1000, -1, "200", 200.0, True, 10**400]),
            ("checkpoint_count", [-1, 2**31, 1.0, "1", None, True]),
            ("first_checkpoint_id", BAD_TEXT),
            ("last_checkpoint_id", BAD_TEXT),
            ("paused", [None, 0, 1, "yes"]),
            ("error", [*BAD_JSON, {}, {"code": "c"}, {"code": 1, "type": None, "message": "m"}, 0, ""]),
            ("metadata", [None]),
        ):

            def end(bad: Any, field: str = field) -> Awaitable[bool]:
                return store.finish_run(ending(run_id, **{field: bad}))

            await untouched(end, values)
        error = {"code": "c", "type": None, "message": "m"}
        bad_errors = [*BAD_JSON, None, {}, {**error, "message": None}, {**error, "code": "\x00"}]
        await untouched(lambda bad: store.interrupt_runs(WORKER, bad), bad_errors)

    async def test_bad_searches_are_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        for argument, values in BAD_SEARCHES:

            def threads(bad: Any, argument: str = argument) -> Awaitable[object]:
                return store.search_threads(**cast("Any", {argument: bad}))

            def runs(bad: Any, argument: str = argument) -> Awaitable[object]:
                return store.search_runs(**cast("Any", {argument: bad}))

            await untouched(threads, values)
            await untouched(runs, values)

    async def test_a_bad_start_time_is_refused(self, store: MetadataStoreProtocol, untouched: Any) -> None:
        await untouched(
            lambda bad: store.start_run(new_id(), worker_id="w", thread_id="new", created_at=bad), BAD_TIMES
        )

    async def test_a_message_names_the_place_and_not_the_value(self, store: MetadataStoreProtocol) -> None:
        secret = "hunter2-\x00-hunter2"
        with pytest.raises(InvalidInputError, match=r"metadata\['a'\]\[1\]") as refused:
            await store.create_thread("t", metadata={"a": [1, secret]})
        assert "hunter2" not in str(refused.value)
        with pytest.raises(InvalidInputError, match="thread_id") as refused:
            await store.create_thread(secret)
        assert "hunter2" not in str(refused.value)

    async def test_the_largest_and_deepest_allowed_values_are_stored(self, store: MetadataStoreProtocol) -> None:
        value = {"long": "x" * 200_000, "deep": nested(30)}
        await store.create_thread("x" * 255, metadata=value)
        (row,) = await store.search_threads()
        assert (row["thread_id"], row["metadata"]) == ("x" * 255, value)
        assert row["created_at"] <= datetime.now(UTC)

    async def test_of_subclasses_the_plain_value_is_kept(self, store: MetadataStoreProtocol) -> None:
        class Colour(StrEnum):
            RED = "red"

            def __str__(self) -> str:
                return "something else"

        class Level(IntEnum):
            HIGH = 3

        thread = await store.create_thread("t", metadata={Colour.RED: Colour.RED, "level": Level.HIGH})
        for row in (thread, await store.get_thread("t")):
            assert row is not None
            assert [(type(key), type(value)) for key, value in row["metadata"].items()] == [(str, str), (str, int)]
            assert row["metadata"] == {"red": "red", "level": 3}


def _shown(value: Any) -> str:
    try:
        return ascii(value)[:60]
    except RuntimeError:
        return type(value).__name__
