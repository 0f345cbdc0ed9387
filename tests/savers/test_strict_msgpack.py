"""LangGraph clones a saver with an allowlist under strict msgpack: the clone stamps, too."""

import os
import subprocess
import sys
from pathlib import Path

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
