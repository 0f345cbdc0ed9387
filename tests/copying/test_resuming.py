"""A copy that was cut off is finished by starting it again; what is there already stays."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings, current_run
from skeino.copying import CopyProgress, CopyReport, copy_persistence
from skeino.persistence import open_persistence
from skeino.persistence.inventory import StateInventory
from skeino_asgi import RunTracker
from tests.copying.conftest import Places
from tests.copying.house import all_rows, all_state
from tests.savers.graphs import config_of, plain, said

ROOT = Path(__file__).parents[2]
THREADS = [f"t{number}" for number in range(200)]
SCHEMES = [
    "sqlite",
    pytest.param("postgres", marks=pytest.mark.postgres),
    pytest.param("mongodb", marks=pytest.mark.mongodb),
]


@pytest.fixture
async def source(place: Places) -> SkeinoSettings:
    """A house of many small threads."""
    settings = place("sqlite")
    tracker = RunTracker(settings)
    async with tracker.lifespan():
        graph = plain(tracker.checkpointer)
        for thread_id in THREADS:
            async with tracker.run(thread_id=thread_id) as run:
                await graph.ainvoke(said("hello"), run.config)
    return settings


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_killed_in_the_middle_and_started_again(source: SkeinoSettings, place: Places, scheme: str) -> None:
    target = place(scheme)
    async with open_persistence(target) as there:
        process = started(source, target)
        try:
            await until_some_have_arrived(there.checkpointer)
            os.kill(process.pid, signal.SIGKILL)
        finally:
            assert process.wait(30) == -signal.SIGKILL
        arrived = len(await there.checkpointer.athread_ids())  # type: ignore[attr-defined]
        assert 0 < arrived < len(THREADS), "it was killed too early or too late to show anything"

    report = await copy_persistence(source, target)

    assert report.verified, report.differences
    assert 0 < report.checkpoints.copied < report.checkpoints.found == 3 * len(THREADS)
    assert await all_rows(target) == await all_rows(source)
    async with open_persistence(source) as here, open_persistence(target) as there:
        assert await all_state(there, THREADS) == await all_state(here, THREADS)


@pytest.mark.parametrize("phase", ["threads", "runs", "state", "verification"])
async def test_cancelled_in_any_phase_and_started_again(source: SkeinoSettings, place: Places, phase: str) -> None:
    target = place("sqlite")
    copying: asyncio.Task[CopyReport]

    def stop(progress: CopyProgress) -> None:
        if progress.phase == phase and progress.done > 5:
            copying.cancel()

    copying = asyncio.create_task(copy_persistence(source, target, concurrency=2, on_progress=stop))
    with pytest.raises(asyncio.CancelledError):
        await copying

    assert (await copy_persistence(source, target)).verified
    assert await all_rows(target) == await all_rows(source)


async def test_copied_twice_nothing_is_written_the_second_time(source: SkeinoSettings, place: Places) -> None:
    target = place("sqlite")
    first = await copy_persistence(source, target, concurrency=1)
    second = await copy_persistence(source, target)

    assert first.verified
    assert second.verified
    assert first.checkpoints.copied == first.checkpoints.found == second.checkpoints.found
    assert [second.threads.copied, second.runs.copied, second.checkpoints.copied, second.pending_writes.copied] == [
        0
    ] * 4


async def test_pending_writes_that_came_later_follow(source: SkeinoSettings, place: Places) -> None:
    target = place("sqlite")
    await copy_persistence(source, target)
    async with open_persistence(source) as here:
        found = await here.checkpointer.aget_tuple(config_of("t0"))
        assert found is not None
        await here.checkpointer.aput_writes(found.config, [("messages", ["late"])], "a-task")

    report = await copy_persistence(source, target)

    assert report.verified, report.differences
    assert (report.checkpoints.copied, report.pending_writes.copied) == (0, 1)


async def test_progress_grows_in_each_phase(source: SkeinoSettings, place: Places) -> None:
    steps: list[CopyProgress] = []
    await copy_persistence(source, place("sqlite"), on_progress=steps.append)

    phases = list(dict.fromkeys(step.phase for step in steps))
    assert phases == ["threads", "runs", "state", "verification"]
    for phase in phases:
        done = [step.done for step in steps if step.phase == phase]
        assert done == sorted(done)
    assert steps[-1] == CopyProgress("verification", 2 * len(THREADS), 2 * len(THREADS))
    assert {step.total for step in steps if step.phase == "state"} == {len(THREADS)}


async def test_within_a_run_checkpoints_are_not_stamped_with_it(source: SkeinoSettings, place: Places) -> None:
    async with open_persistence(source) as here:
        await plain(here.checkpointer).ainvoke(said("by nobody"), config_of("untracked"))
    target, tracker = place("sqlite"), RunTracker(SkeinoSettings(checkpointer_scheme="memory"))
    async with tracker.lifespan(), tracker.run():
        assert current_run() is not None
        assert (await copy_persistence(source, target)).verified
    async with open_persistence(target) as there:
        stored = await all_state(there, ["untracked"])
        assert stored
        assert not [metadata for _, _, metadata, *_ in stored.values() if "run_id" in metadata]


def started(
    source: SkeinoSettings, target: SkeinoSettings, *, errors: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """The command, at work."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "COPY_FROM": source.checkpointer_uri or "",
        "COPY_TO": target.checkpointer_uri or "",
    }
    command = [sys.executable, "-m", "skeino", "copy", "--json", "--concurrency", "1"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)


async def until_some_have_arrived(saver: Any) -> None:
    assert isinstance(saver, StateInventory)
    async with asyncio.timeout(60):
        while len(await saver.athread_ids()) < 3:
            await asyncio.sleep(0.002)
