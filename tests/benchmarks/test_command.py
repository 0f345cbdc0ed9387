"""`python -m benchmarks` measures, and says so in tables or in JSON. What it measures is no test's business."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import CONDITIONS, DATABASES, PLACES
from benchmarks.middleware import VARIANTS
from benchmarks.page import begin, written
from benchmarks.servers import SCHEMES
from tests.servers import mongodb, postgres
from tests.servers.process import ServerUnavailableError

ROOT = Path(__file__).parents[2]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def figures_in(result: Any) -> list[dict[str, Any]]:
    """All figures, however deep."""
    if "median" in result:
        return [result]
    return [figure for part in result.values() if isinstance(part, dict) for figure in figures_in(part)]


def test_it_measures_the_middleware() -> None:
    run = benchmarks("middleware", "--quick", "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)["middleware"]
    assert set(result["figures"]) == set(VARIANTS)
    assert all(figure["median"] > 0 for figure in result["figures"].values())
    assert result["machine"]


def test_it_prints_tables() -> None:
    run = benchmarks("middleware", "--quick")
    assert run.returncode == 0, run.stderr
    assert all(f"| {name} |" in run.stdout for name in VARIANTS)


@pytest.mark.parametrize(
    "scheme",
    [
        "sqlite",
        pytest.param("postgres", marks=[pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(300)]),
        pytest.param("mongodb", marks=[pytest.mark.mongodb, pytest.mark.slow]),
    ],
)
def test_it_measures_databases_on_a_disk(scheme: str, tmp_path: Path) -> None:
    if scheme != "sqlite":
        try:
            (postgres.find_postgres if scheme == "postgres" else mongodb.find_mongodb)(local=True)
        except ServerUnavailableError as exc:
            pytest.skip(str(exc))
    for folder in (tmp_path, *tmp_path.parents[:2]):
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)  # root's servers run as another user

    run = benchmarks("--scheme", scheme, "--quick", "--json", "--data", str(tmp_path))

    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    possible = [topic for topic in DATABASES if topic not in CONDITIONS or CONDITIONS[topic]()]
    topics = [topic for topic in possible if scheme in PLACES.get(topic, SCHEMES)]
    figures = {topic: figures_in(result[topic]["schemes"][scheme]) for topic in topics}
    assert set(result) == {"middleware", *topics}
    expected = {"runs": 8 if scheme == "mongodb" else 10, "savers": 12, "operations": 18, "growth": 12}
    expected |= {"served": 12, "network": 8, "memory": 8}
    expected |= {"tables": 2 * 20, "histories": 6, "sizes": 0, "disk": 2 * 2 * 2}
    assert {topic: len(found) for topic, found in figures.items()} == {topic: expected[topic] for topic in topics}
    figures.pop("memory", None)  # so few runs are lost among the pages that come and go
    assert all(figure["median"] > 0 for found in figures.values() for figure in found)
    each = result["sizes"]["schemes"][scheme]["each"]
    assert all(
        one[name] > 0 for numbers in each.values() for one in numbers.values() for name in one if name != "commits"
    )
    if scheme == "postgres":  # what comes at once shares commits
        assert each["a run"]["32"]["commits"] < 1 < each["a run"]["1"]["commits"]
    assert result["runs"]["flush_in_microseconds"] > 0
    if "disk" in topics:
        fast, slow = (disk["flush_in_microseconds"] for disk in result["disk"]["schemes"][scheme]["disks"].values())
        assert slow > fast + 400
    assert list(tmp_path.iterdir()) == []


def test_a_topic_is_refused_where_it_is_not_measured() -> None:
    run = benchmarks("served", "--scheme", "mongodb")
    assert run.returncode == 2
    assert "served is measured on postgres" in run.stderr


def test_what_was_taken_quickly_is_not_written() -> None:
    run = benchmarks("runs", "--quick", "--write")
    assert run.returncode == 2
    assert "--write is for" in run.stderr


def test_a_topics_table_is_replaced_and_no_other() -> None:
    page = f"Before.\n{begin('runs')}old\n<!-- end -->\nBetween.\n{begin('savers')}kept\n<!-- end -->\nAfter.\n"
    assert written(page, "runs", "new\n") == page.replace("old", "new")


def test_a_page_without_the_topic_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for savers"):
        written(f"{begin('runs')}old\n<!-- end -->\n", "savers", "new\n")
