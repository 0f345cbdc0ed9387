"""A saver that skeino has never heard of is stamped as it is: its methods, capabilities and clones stay its own."""

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langgraph.checkpoint.conformance.capabilities import DetectedCapabilities
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from skeino import ConfigurationError, SkeinoSettings
from skeino.persistence import CheckpointerSpec, RunStampMixin, open_persistence, register_checkpointer, registry
from skeino_asgi import RunTracker
from tests.savers.graphs import Saver, checkpoints, config_of, plain, said, stamps


@dataclasses.dataclass
class Note:
    text: str


class ArchiveSaver(InMemorySaver):
    """With state, a property, an extra method, an optional capability, and a slot."""

    __slots__ = ("shelf",)

    def __init__(self) -> None:
        super().__init__()
        self.shelf = "top"
        self.copies = 0

    @property
    def label(self) -> str:
        return f"{self.shelf}, {self.copies} copies"

    def count(self) -> int:
        return sum(len(checkpoints) for thread in self.storage.values() for checkpoints in thread.values())

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        async for one in self.alist(config_of(source_thread_id)):
            config = config_of(target_thread_id, checkpoint_ns=one.config["configurable"]["checkpoint_ns"])
            await self.aput(config, one.checkpoint, one.metadata, one.checkpoint["channel_versions"])
        self.copies += 1


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_checkpointers", {})


def registered(make: Callable[[], Saver]) -> SkeinoSettings:
    @register_checkpointer("archive", durable=False)
    @asynccontextmanager
    async def build(spec: CheckpointerSpec) -> AsyncIterator[Saver]:
        yield make()

    return SkeinoSettings(checkpointer_scheme="archive")


@pytest.fixture
def stock() -> ArchiveSaver:
    return ArchiveSaver()


@pytest.fixture
def settings(stock: ArchiveSaver) -> SkeinoSettings:
    return registered(lambda: stock)


async def test_it_stamps_and_counts(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        async with tracker.run(thread_id="t") as run:
            await plain(tracker.checkpointer).ainvoke(said("hello"), run.config)
        found = await checkpoints(tracker.checkpointer, "t")
    assert stamps(found) == [run.run_id] * 3
    assert run.ledger.checkpoint_count == 3


async def test_it_keeps_its_methods_attributes_and_capabilities(settings: SkeinoSettings, stock: ArchiveSaver) -> None:
    async with open_persistence(settings) as persistence:
        saver: Any = persistence.checkpointer
        assert isinstance(saver, RunStampMixin)
        assert isinstance(saver, ArchiveSaver)
        assert DetectedCapabilities.from_instance(saver) == DetectedCapabilities.from_instance(stock)
        await plain(saver).ainvoke(said("hello"), config_of("t"))
        await saver.acopy_thread("t", "copy")
        assert saver.count() == stock.count() == 6
        assert saver.label == "top, 1 copies"
        stock.copies = 5  # what its builder changes later is seen
        assert saver.copies == 5


async def test_a_copy_s_checkpoints_keep_the_ids_of_their_runs(settings: SkeinoSettings) -> None:
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        saver: Any = tracker.checkpointer
        async with tracker.run(thread_id="t") as first:
            await plain(saver).ainvoke(said("hello"), first.config)
        async with tracker.run() as copying:
            await saver.acopy_thread("t", "copy")
        assert set(stamps(await checkpoints(saver, "copy"))) == {first.run_id}
        assert copying.thread_id == "copy"


async def test_a_clone_with_an_allowlist_stamps_and_the_saver_stays_as_strict_as_it_was(stock: ArchiveSaver) -> None:
    stock.serde = JsonPlusSerializer(allowed_msgpack_modules=())
    tracker = RunTracker(registered(lambda: stock))
    async with tracker.lifespan():
        clone: Any = tracker.checkpointer.with_allowlist([(Note.__module__, "Note")])
        assert type(clone) is type(tracker.checkpointer)
        async with tracker.run(thread_id="t") as run:
            await plain(clone).ainvoke({"messages": [Note("hello")]}, run.config)
        latest = await clone.aget_tuple(run.config)
        strict = await tracker.checkpointer.aget_tuple(run.config)
    assert latest is not None
    assert latest.metadata["run_id"] == run.run_id
    assert latest.checkpoint["channel_values"]["messages"][0] == Note("hello")
    assert strict is not None
    assert strict.checkpoint["channel_values"]["messages"][0] != Note("hello")


async def test_two_openings_have_one_class() -> None:
    settings = registered(ArchiveSaver)
    async with open_persistence(settings) as one, open_persistence(settings) as other:
        assert type(one.checkpointer) is type(other.checkpointer)
        assert type(one.checkpointer).__module__ == ArchiveSaver.__module__


async def test_a_saver_that_stamps_already_is_left_as_it_is() -> None:
    class Mine(RunStampMixin, ArchiveSaver):
        pass

    mine = Mine()
    async with open_persistence(registered(lambda: mine)) as persistence:
        assert persistence.checkpointer is mine


async def test_a_class_that_cannot_be_extended_is_refused_and_the_mixin_is_named() -> None:
    class Final(InMemorySaver):
        def __init_subclass__(cls) -> None:
            raise TypeError("Final is final")

    class OddMeta(type(InMemorySaver)):  # type: ignore[misc]
        def __new__(cls, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> Any:
            if name.startswith("Stamped"):
                raise TypeError("no")
            return super().__new__(cls, name, bases, body)

    class Odd(InMemorySaver, metaclass=OddMeta):
        pass

    for saver_class in (Final, Odd):
        with pytest.raises(ConfigurationError, match=rf"class {saver_class.__name__}\(RunStampMixin, ...\)"):
            async with open_persistence(registered(saver_class)):
                raise AssertionError
        registry._checkpointers.clear()
