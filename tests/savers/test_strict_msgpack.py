"""LangGraph clones a saver with an allowlist under strict msgpack: the clone stamps, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from skeino import SkeinoSettings


def test_a_clone_with_an_allowlist_stamps(settings: SkeinoSettings) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.savers.strict_msgpack",
            settings.checkpointer_scheme,
            settings.checkpointer_uri or "",
        ],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LANGGRAPH_STRICT_MSGPACK": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


OPENING_TWICE = """
import asyncio, logging, sys
from skeino import SkeinoSettings
from skeino.persistence import open_checkpointer, open_persistence

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")


async def main():
    settings = SkeinoSettings(checkpointer_scheme=sys.argv[1], checkpointer_uri="skeino.db")
    async with open_persistence(settings), open_persistence(settings), open_checkpointer(settings):
        pass


asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("scheme", "strict", "lines"), [("sqlite", "", 1), ("sqlite", "false", 1), ("sqlite", "true", 0), ("memory", "", 0)]
)
def test_who_reads_checkpoints_that_may_name_any_class_is_told_so_once(
    tmp_path: Path, scheme: str, strict: str, lines: int
) -> None:
    environment = {**os.environ, "LANGGRAPH_STRICT_MSGPACK": strict, "PYTHONPATH": str(Path(__file__).parents[2])}
    if not strict:
        del environment["LANGGRAPH_STRICT_MSGPACK"]
    done = subprocess.run(
        [sys.executable, "-c", OPENING_TWICE, scheme],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    said = [line for line in done.stdout.splitlines() if "LANGGRAPH_STRICT_MSGPACK=true" in line]
    assert [line.split()[:2] for line in said] == [["skeino", "INFO"]] * lines
