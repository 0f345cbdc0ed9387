"""`python -m benchmarks` measures, and says so in a table or in JSON. What it measures is no test's business."""

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.middleware import VARIANTS

ROOT = Path(__file__).parents[2]


def benchmarks(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_it_prints_json() -> None:
    run = benchmarks("--rounds", "2", "--times", "5", "--json")
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert set(result["middleware"]) == set(VARIANTS)
    assert all(figure["median"] > 0 for figure in result["middleware"].values())
    assert result["machine"]


def test_it_prints_a_table() -> None:
    run = benchmarks("--rounds", "2", "--times", "5")
    assert run.returncode == 0, run.stderr
    assert all(f"| {name} |" in run.stdout for name in VARIANTS)


def test_one_round_is_too_few() -> None:
    run = benchmarks("--rounds", "1")
    assert run.returncode == 2
    assert "at least 2 rounds" in run.stderr
