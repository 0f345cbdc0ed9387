"""What is at the target already is never overwritten, and never mixed with what comes; what cannot work is refused."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypedDict

import psycopg
import pytest
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, StateGraph

from skeino import ConfigurationError, SchemaError, SkeinoSettings, StoreUnavailableError
from skeino.copying import copy_persistence, survey
from skeino.persistence import CheckpointerSpec, open_persistence, register_checkpointer
from skeino.persistence.registry import _checkpointers
from skeino_asgi import RunTracker
from tests.copying.conftest import Places
from tests.copying.house import all_rows, all_state, furnish
from tests.savers.graphs import Saver, config_of, plain, said
from tests.servers.postgres import with_parameters


async def talk(settings: SkeinoSettings, thread_id: str, message: str, *, owner: str | None = None) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan(), tracker.run(thread_id=thread_id, owner=owner) as run:
        await plain(tracker.checkpointer).ainvoke(said(message), run.config)


@pytest.mark.parametrize("owner", ["ada", "bob", None])
async def test_another_thread_of_the_same_id_is_not_mixed_with_it(place: Places, owner: str | None) -> None:
    source, target = place("sqlite"), place("sqlite")
    await talk(source, "t1", "of the source", owner="ada")
    await talk(source, "t2", "of the source")
    await talk(target, "t1", "of the target", owner=owner)
    async with open_persistence(target) as there:
        before = await all_state(there, ["t1"])

    report = await copy_persistence(source, target)

    assert not report.verified
    assert any("'t1'" in one and "another thread of that id" in one for one in report.differences), report.differences
    assert not [one for one in report.differences if "'t2'" in one]
    async with open_persistence(target) as there:
        assert await all_state(there, ["t1"]) == before
        assert await all_state(there, ["t2"])
        thread = await there.metadata_store.get_thread("t1")
        assert thread is not None
        assert thread["owner"] == owner
        runs = await there.metadata_store.search_runs(thread_id="t1")
        assert len(runs) == 1


@pytest.mark.parametrize("tracked", [True, False], ids=["the source has a row", "neither has a row"])
async def test_state_of_the_target_without_a_row_is_left_alone_and_becomes_nobody_s(
    place: Places, tracked: bool
) -> None:
    source, target = place("sqlite"), place("sqlite")
    if tracked:
        await talk(source, "t1", "of the source", owner="ada")
    else:
        async with open_persistence(source) as here:
            await plain(here.checkpointer).ainvoke(said("of the source"), config_of("t1"))
    await talk(source, "t2", "of the source")
    async with open_persistence(target) as there:
        await plain(there.checkpointer).ainvoke(said("bob's secret"), config_of("t1"))
        before = await all_state(there, ["t1"])

    report = await copy_persistence(source, target)

    assert not report.verified
    assert any("'t1'" in one and "other state of that id" in one for one in report.differences), report.differences
    async with open_persistence(target) as there:
        assert await all_state(there, ["t1"]) == before
        assert await there.metadata_store.get_thread("t1") is None
        assert await there.metadata_store.search_runs(thread_id="t1") == []
        assert len(await there.metadata_store.search_runs(thread_id="t2")) == 1


async def test_a_large_number_of_postgresql_arrives_as_the_float_that_it_was(place: Places) -> None:
    source, target = place("postgres"), place("sqlite")

    class Numbers(TypedDict):
        x: float

    def graph(saver: Saver) -> Any:
        builder = StateGraph(Numbers)
        builder.add_node("grow", lambda state: {"x": state["x"] * 10})
        builder.add_edge(START, "grow")
        return builder.compile(checkpointer=saver)

    async with open_persistence(source) as here:
        await graph(here.checkpointer).ainvoke({"x": 1e23}, config_of("t"))

    report = await copy_persistence(source, target)

    assert report.verified, report.differences
    async with open_persistence(target) as there:
        assert (await graph(there.checkpointer).aget_state(config_of("t"))).values == {"x": 1e24}


async def test_state_without_a_row_is_not_mixed_with_a_thread_of_the_target(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    async with open_persistence(source) as here:
        await plain(here.checkpointer).ainvoke(said("untracked"), config_of("t1"))
    await talk(target, "t1", "of the target", owner="ada")

    report = await copy_persistence(source, target)

    assert [one for one in report.differences if "another thread of that id" in one]
    assert report.checkpoints.copied == 0


async def test_rows_that_differ_are_left_and_reported_by_column(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    await talk(source, "t1", "hello")
    assert (await copy_persistence(source, target)).verified
    async with open_persistence(target) as there:
        await there.metadata_store.update_thread("t1", metadata={"secret": "changed"})
        (run,) = await there.metadata_store.search_runs()
        await there.metadata_store.update_run(run["run_id"], metadata={"secret": "changed"})
    before = await all_rows(target)

    report = await copy_persistence(source, target)

    assert report.differences == [
        "The thread 't1' differs at the target in metadata, updated_at, and was left as it is there.",
        f"The run {run['run_id']} differs at the target in metadata, and was left as it is there.",
    ]
    assert await all_rows(target) == before


async def test_pending_writes_of_the_target_alone_are_left_and_reported(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    await talk(source, "t1", "hello")
    assert (await copy_persistence(source, target)).verified
    async with open_persistence(target) as there:
        found = await there.checkpointer.aget_tuple(config_of("t1"))
        assert found is not None
        await there.checkpointer.aput_writes(found.config, [("messages", ["later"])], "a-task")

    report = await copy_persistence(source, target)

    assert report.differences == ["The state of thread 't1' has other pending writes at the target on 1 checkpoints."]


async def test_a_thread_whose_id_skeino_does_not_take_is_reported_and_holds_up_no_other(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    await talk(source, "t1", "hello")
    async with open_persistence(source) as here:
        await here.checkpointer.database.write(  # type: ignore[attr-defined]
            lambda connection: connection.execute(
                "INSERT INTO checkpoints SELECT 'None', checkpoint_ns, checkpoint_id, parent_checkpoint_id, type, "
                "checkpoint, metadata FROM checkpoints"
            ).close()
        )

    report = await copy_persistence(source, target)

    assert (report.checkpoints.found, report.checkpoints.copied) == (6, 3)
    assert len(report.differences) == 1
    assert report.differences[0].startswith("The state of thread 'None' was not copied: thread_id is 'None'")


async def test_a_checkpoint_that_only_its_application_reads_is_reported_and_the_others_follow(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    await talk(source, "t1", "hello")
    await talk(source, "t2", "hello")
    async with open_persistence(source) as here:
        await here.checkpointer.database.write(  # type: ignore[attr-defined]
            lambda connection: connection.execute(
                "UPDATE checkpoints SET type = 'pickle' WHERE thread_id = 't1' AND parent_checkpoint_id IS NULL"
            ).close()
        )

    report = await copy_persistence(source, target)

    assert report.differences == [
        "The state of thread 't1' was not copied completely: A checkpoint is stored in the format 'pickle', which only "
        "its application can read.",
        "The state of thread 't1' lacks 1 of 3 checkpoints at the target.",
    ]
    assert (report.threads_with_state, report.checkpoints.copied) == (2, 5)
    async with open_persistence(target) as there:
        state = await plain(there.checkpointer).ainvoke(said("again"), config_of("t1"))
    assert len(state["messages"]) == 4


@pytest.mark.parametrize("scheme", ["sqlite", pytest.param("mongodb", marks=pytest.mark.mongodb)])
async def test_one_database_by_two_names_is_refused(place: Places, scheme: str, tmp_path: Path) -> None:
    source = place(scheme)
    await talk(source, "t1", "hello")
    before = await all_rows(source)
    uri = f"{tmp_path}/../{tmp_path.name}/house-1.db" if scheme == "sqlite" else f"{source.checkpointer_uri}&appName=x"
    with pytest.raises(ConfigurationError, match="are the same database"):
        await copy_persistence(source, source.model_copy(update={"checkpointer_uri": uri}))
    assert await all_rows(source) == before


async def test_schemas_of_one_postgres_database_are_two_places(postgres_dsn: str) -> None:
    with psycopg.connect(postgres_dsn) as connection:
        connection.execute("CREATE SCHEMA other")
    source, same, other = (
        SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri=with_parameters(postgres_dsn, **parameters))
        for parameters in ({}, {"application_name": "x"}, {"options": "-c search_path=other"})
    )
    await talk(source, "t1", "hello")

    with pytest.raises(ConfigurationError, match="are the same database"):
        await copy_persistence(source, same)
    assert (await copy_persistence(source, other)).checkpoints.copied == 3


async def test_a_source_without_tables_is_left_alone(place: Places, tmp_path: Path) -> None:
    with pytest.raises(SchemaError):
        await copy_persistence(place("sqlite"), place("sqlite"))
    with pytest.raises(SchemaError):
        await survey(place("sqlite"))
    assert os.listdir(tmp_path) == []


async def test_a_target_that_is_away(place: Places) -> None:
    source = place("sqlite")
    await talk(source, "t1", "hello")
    away = SkeinoSettings(checkpointer_scheme="postgres", checkpointer_uri="postgresql://u:secret@127.0.0.1:9/x")
    with pytest.raises(StoreUnavailableError) as caught:
        await copy_persistence(source, away)
    assert "secret" not in str(caught.value)


async def test_schemes_that_keep_nothing_or_no_rows_are_refused(place: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = SkeinoSettings(checkpointer_scheme="memory")
    with pytest.raises(ConfigurationError, match="target's scheme 'memory' keeps nothing"):
        await copy_persistence(place("sqlite"), memory)

    @register_checkpointer("rowless")
    @asynccontextmanager
    async def open_rowless(spec: CheckpointerSpec) -> AsyncIterator[InMemorySaver]:
        yield InMemorySaver()

    monkeypatch.delitem(_checkpointers, "rowless", raising=False)
    _checkpointers["rowless"] = (open_rowless, True)
    rowless = SkeinoSettings(checkpointer_scheme="rowless", allow_ephemeral_metadata=True)
    with pytest.raises(ConfigurationError, match="source's scheme 'rowless' has no metadata store"):
        await copy_persistence(rowless, place("sqlite"))
    with pytest.raises(ConfigurationError, match="from 1 to 64"):
        await copy_persistence(place("sqlite"), place("sqlite"), concurrency=0)
    del _checkpointers["rowless"]


async def test_a_survey_counts_what_a_copy_finds(place: Places) -> None:
    source, target = place("sqlite"), place("sqlite")
    await furnish(source)

    counted, copied = await survey(source), await copy_persistence(source, target)

    assert copied.verified
    assert counted.threads.copied == counted.runs.copied == counted.checkpoints.copied == 0
    for found in ("threads", "runs", "checkpoints", "pending_writes"):
        assert getattr(counted, found).found == getattr(copied, found).found > 0
    assert counted.active_runs == copied.active_runs == 2
    assert counted.threads_with_state == copied.threads_with_state
