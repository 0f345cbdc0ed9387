"""Choosing a backend, registering one's own, and what start-up says when it cannot work."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.memory import InMemorySaver

from skeino import ConfigurationError, MissingDriverError, SkeinoSettings, SplitBrainError, UnknownSchemeError
from skeino.persistence import (
    CheckpointerSpec,
    InMemoryMetadataStore,
    RunStampMixin,
    open_checkpointer,
    open_persistence,
    register_checkpointer,
    register_metadata_store,
    registry,
)


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_checkpointers", {})
    monkeypatch.setattr(registry, "_metadata_stores", {})


async def _fails(**settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        async with open_persistence(SkeinoSettings(**settings)):
            raise AssertionError
    message = str(caught.value)
    assert message.endswith((".", "?"))
    assert "\n" not in message
    return message


async def test_the_documented_builder_works_unchanged() -> None:
    seen: list[CheckpointerSpec] = []

    @register_checkpointer("mydb")
    @asynccontextmanager
    async def build(spec: CheckpointerSpec) -> AsyncIterator[InMemorySaver]:
        seen.append(spec)
        yield InMemorySaver()

    @register_metadata_store("mydb")
    @asynccontextmanager
    async def build_store(spec: CheckpointerSpec) -> AsyncIterator[InMemoryMetadataStore]:
        yield InMemoryMetadataStore()

    settings = SkeinoSettings(checkpointer_scheme="MyDB", checkpointer_uri="mydb://x", checkpointer_options={"a": 1})
    async with open_persistence(settings) as persistence:
        assert isinstance(persistence.checkpointer, InMemorySaver)
        assert isinstance(persistence.checkpointer, RunStampMixin)
        assert isinstance(persistence.metadata_store, InMemoryMetadataStore)
    async with open_checkpointer(settings) as checkpointer:
        assert isinstance(checkpointer, RunStampMixin)
    assert [(spec.scheme, spec.uri, dict(spec.options)) for spec in seen] == [("mydb", "mydb://x", {"a": 1})] * 2


async def test_both_halves_share_a_resource_that_is_closed_after_both() -> None:
    order: list[str] = []

    @asynccontextmanager
    async def connect(spec: CheckpointerSpec) -> AsyncIterator[list[str]]:
        order.append("connect")
        yield order
        order.append("disconnect")

    @register_checkpointer("mydb")
    @asynccontextmanager
    async def build(spec: CheckpointerSpec) -> AsyncIterator[InMemorySaver]:
        assert await spec.share(connect) is order
        yield InMemorySaver()
        order.append("checkpointer closed")

    @register_metadata_store("mydb")
    @asynccontextmanager
    async def build_store(spec: CheckpointerSpec) -> AsyncIterator[InMemoryMetadataStore]:
        assert await spec.share(connect) is order
        yield InMemoryMetadataStore()
        order.append("store closed")

    async with open_persistence(SkeinoSettings(checkpointer_scheme="mydb")):
        assert order == ["connect"]
    assert order[0] == "connect"
    assert set(order[1:]) == {"store closed", "disconnect", "checkpointer closed"}
    assert order.index("store closed") < order.index("disconnect")


def test_schemes_have_aliases_and_no_case() -> None:
    schemes = [registry.normalised_scheme(one) for one in ("PostgreSQL", "sqlite3", " SQLite ", "Mongo")]
    assert schemes == ["postgres", "sqlite", "sqlite", "mongodb"]


async def test_an_unknown_scheme_is_answered_with_the_nearest() -> None:
    assert "did you mean 'postgres'" in await _fails(checkpointer_scheme="postgress")
    message = await _fails(checkpointer_scheme="cassandra", checkpointer_uri="cassandra://u:hunter2@h")
    assert "known are memory, mongodb, postgres, redis, sqlite" in message
    assert "hunter2" not in message
    assert issubclass(UnknownSchemeError, LookupError)


@pytest.mark.parametrize("scheme", ["sqlite", "postgres", "mongodb", "redis"])
@pytest.mark.parametrize("uri", [None, "", "  "])
async def test_a_missing_uri_is_answered_with_an_example(scheme: str, uri: str | None) -> None:
    message = await _fails(checkpointer_scheme=scheme, checkpointer_uri=uri, allow_ephemeral_metadata=True)
    assert "SKEINO_CHECKPOINTER_URI" in message
    assert "for example" in message


async def test_a_uri_never_chooses_the_scheme() -> None:
    async with open_persistence(SkeinoSettings(checkpointer_uri="postgresql://nowhere/db")) as persistence:
        assert isinstance(persistence.checkpointer, InMemorySaver)


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [
        ("sqlite", "aiosqlite"),
        ("sqlite", "langgraph.checkpoint.sqlite"),
        ("postgres", "psycopg"),
        ("postgres", "psycopg_pool"),
        ("mongodb", "pymongo"),
        ("mongodb", "bson"),  # pymongo brings it, and it comes first in our imports
        ("mongodb", "langgraph.checkpoint.mongodb"),
        ("redis", "redis"),
        ("redis", "redisvl"),
        ("redis", "langgraph.checkpoint.redis"),
    ],
)
async def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, scheme: str, driver: str) -> None:
    for module in list(sys.modules):
        if module.startswith(
            (*(f"skeino.persistence.{name}" for name in ("sqlite", "postgres", "mongodb", "redis")), driver)
        ):
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, driver, None)  # as if it were not installed
    with pytest.raises(MissingDriverError, match=rf"pip install 'skeino-asgi\[{scheme}\]'") as caught:
        async with open_persistence(SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri="x")):
            raise AssertionError
    assert isinstance(caught.value, ImportError)
    assert str(caught.value.name).startswith(driver)


async def test_another_import_error_is_not_taken_for_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.startswith("skeino.persistence.sqlite")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "skeino.persistence.sqlite.schema", None)
    with pytest.raises(ImportError) as caught:
        async with open_persistence(SkeinoSettings(checkpointer_scheme="sqlite", checkpointer_uri="x")):
            raise AssertionError
    assert not isinstance(caught.value, MissingDriverError)


async def test_a_builder_that_is_no_context_manager_is_told_what_it_lacks() -> None:
    async def generator(spec: CheckpointerSpec) -> Any:
        yield InMemorySaver()

    async def coroutine(spec: CheckpointerSpec) -> Any:
        return InMemorySaver()

    forgetful: tuple[Any, ...] = (generator, coroutine)
    for builder in forgetful:
        register_checkpointer(builder.__name__, durable=False)(builder)
    for scheme in ("generator", "coroutine"):
        message = await _fails(checkpointer_scheme=scheme)
        assert f"The builder '{scheme}'" in message
        assert "@asynccontextmanager" in message


async def test_a_builder_that_yields_no_saver_is_refused() -> None:
    @register_checkpointer("odd", durable=False)
    @asynccontextmanager
    async def build(spec: CheckpointerSpec) -> AsyncIterator[Any]:
        yield {"not": "a saver"}

    assert "yielded a dict" in await _fails(checkpointer_scheme="odd")


async def test_a_store_that_lacks_methods_is_refused() -> None:
    @register_metadata_store("odd")
    @asynccontextmanager
    async def build(spec: CheckpointerSpec) -> AsyncIterator[Any]:
        yield object()

    register_checkpointer("odd")(_in_memory)
    message = await _fails(checkpointer_scheme="odd")
    assert "lacks methods of MetadataStoreProtocol: start_run, attach_thread, " in message


async def test_a_decorator_without_a_scheme_is_refused() -> None:
    decorate: Any = register_checkpointer
    with pytest.raises(ConfigurationError, match=r'write @register_checkpointer\("mydb"\)'):
        decorate(_in_memory)(_in_memory)


async def test_a_scheme_that_has_a_store_alone_is_told_so() -> None:
    register_metadata_store("half")(_in_memory)  # type: ignore[type-var]
    assert "it has a metadata store, but no checkpointer" in await _fails(checkpointer_scheme="half")


@asynccontextmanager
async def _in_memory(spec: CheckpointerSpec) -> AsyncIterator[InMemorySaver]:
    yield InMemorySaver()


async def test_durable_state_beside_an_ephemeral_run_list_is_refused() -> None:
    register_checkpointer("mydb")(_in_memory)
    message = await _fails(checkpointer_scheme="mydb")
    assert "@register_metadata_store" in message
    assert "allow_ephemeral_metadata=True" in message
    with pytest.raises(SplitBrainError):
        async with open_persistence(SkeinoSettings(checkpointer_scheme="mydb")):
            raise AssertionError


async def test_a_uri_chooses_no_scheme_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with open_persistence(SkeinoSettings(checkpointer_uri="postgresql://u:s3cret@h/d")):
        pass
    assert "only checkpointer_scheme chooses a backend" in caplog.text
    assert "s3cret" not in caplog.text
    caplog.clear()
    for meant in (SkeinoSettings(), SkeinoSettings(checkpointer_scheme="memory", checkpointer_uri="x.db")):
        with caplog.at_level("INFO", "skeino"):
            async with open_persistence(meant):
                pass
    assert {(one.levelname, one.getMessage()) for one in caplog.records} == {
        ("INFO", "State and runs are kept in the memory of this process, which no other shares.")
    }


async def test_unless_it_is_allowed_and_then_it_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    register_checkpointer("mydb")(_in_memory)
    settings = SkeinoSettings(checkpointer_scheme="mydb", allow_ephemeral_metadata=True)
    async with open_persistence(settings) as persistence:
        assert isinstance(persistence.metadata_store, InMemoryMetadataStore)
    assert "lost at a restart" in caplog.text


def test_a_scheme_is_registered_once_unless_replacing_is_meant() -> None:
    register_checkpointer("mydb")(_in_memory)
    for taken in ("mydb", "MYDB", "sqlite", "PostgreSQL"):
        with pytest.raises(ConfigurationError, match="registered already"):
            register_checkpointer(taken)(_in_memory)
    register_checkpointer("mydb", replace=True)(_in_memory)
    register_checkpointer("sqlite", replace=True)(_in_memory)
    with pytest.raises(ConfigurationError, match="is no scheme"):
        register_checkpointer("my db")(_in_memory)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"setup_shema": True}, "did you mean setup_schema"),
        ({"setup_schema": "yes"}, "must be of type bool, not str"),
        ({"busy_timeout": True}, "must be of type int or float, not bool"),
        ({"busy_timeout": -1}, "must be a number above zero"),
        ({"operation_timeout": 0}, "must be a number above zero"),
        ({"operation_timeout": float("nan")}, "must be a number above zero"),
    ],
)
async def test_a_wrong_option_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    uri = str(tmp_path / "x.db")
    assert said in await _fails(checkpointer_scheme="sqlite", checkpointer_uri=uri, checkpointer_options=options)
    assert not (tmp_path / "x.db").exists()
