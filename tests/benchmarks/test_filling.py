"""What is looked for in filled tables is as much in large ones as in small ones."""

from collections import Counter

import pytest

from benchmarks import filling
from skeino.persistence.restoring import restored_runs, restored_threads


@pytest.mark.parametrize("number", [100, 1_000, 10_000])
def test_as_many_rows_are_rare_however_many_there_are(number: int) -> None:
    threads, runs = [*filling.threads(number)], [*filling.runs(number)]

    assert len(threads) == len(runs) == number
    assert len({run["run_id"] for run in runs}) == len({thread["thread_id"] for thread in threads}) == number
    assert Counter(thread["status"] for thread in threads)["interrupted"] == filling.RARE
    assert Counter(run["status"] for run in runs)["timeout"] == filling.RARE
    assert Counter(thread["owner"] for thread in threads)[filling.SMALL_OWNER] == filling.RARE
    assert max(Counter(run["thread_id"] for run in runs).values()) == filling.RARE
    user = filling.rare_metadata(number)["user"]
    assert sum(run["metadata"]["user"] == user for run in runs) == filling.RARE
    assert sum(run["status"] == "running" for run in runs) == filling.RARE


def test_a_store_would_take_the_rows() -> None:
    threads, runs = [*filling.threads(100)], [*filling.runs(100)]

    assert restored_threads(threads) == threads
    assert restored_runs(runs) == runs
    owners = {thread["thread_id"]: thread["owner"] for thread in threads}
    assert all(run["owner"] == owners[str(run["thread_id"])] for run in runs)
