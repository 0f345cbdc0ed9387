"""From each scheme to each: all arrives, nothing changes at the source, and every thread goes on."""

import pytest

from skeino.copying import copy_persistence
from skeino.persistence import open_persistence
from tests.copying.conftest import Places
from tests.copying.house import THREADS, all_rows, all_state, all_writes, application, dump, furnish, go_on, history_of

SERVERS = {"sqlite": [], "postgres": [pytest.mark.postgres], "mongodb": [pytest.mark.mongodb]}
PAIRS = [
    pytest.param(source, target, marks=[*SERVERS[source], *SERVERS[target]], id=f"{source} to {target}")
    for source in SERVERS
    for target in SERVERS
]


@pytest.mark.parametrize(("source_scheme", "target_scheme"), PAIRS)
async def test_everything_arrives_and_every_thread_goes_on(
    place: Places, source_scheme: str, target_scheme: str
) -> None:
    source, target = place(source_scheme), place(target_scheme)
    with application():
        await furnish(source)
        rows = await all_rows(source)
        async with open_persistence(source) as opened:
            state = await all_state(opened)
            history = {thread_id: await history_of(thread_id, opened) for thread_id in THREADS}
    before = dump(source)

    report = await copy_persistence(source, target)  # where the application's classes are not known

    assert report.verified, report.differences
    assert (report.threads.found, report.threads.copied) == (8, 8)
    assert (report.runs.found, report.runs.copied) == (455 + 15, 455 + 15)
    assert report.active_runs == 2
    assert report.threads_with_state == len(THREADS)
    assert report.checkpoints.found == report.checkpoints.copied == len(state)
    assert report.pending_writes.found == report.pending_writes.copied > 0
    assert dump(source) == before
    assert await all_rows(source) == rows == await all_rows(target)
    with application():
        async with open_persistence(source) as here, open_persistence(target) as there:
            assert await all_state(here) == state
            assert await all_state(there) == state
            assert await all_writes(there) == await all_writes(here)
            for thread_id in THREADS:
                assert await history_of(thread_id, there) == history[thread_id]
                assert await go_on(thread_id, there) == await go_on(thread_id, here), thread_id
