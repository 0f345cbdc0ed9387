"""The command line, run as people and programs run it, and the databases that it is run on."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from skeino import SkeinoSettings
from tests.contract.backends import DURABLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=DURABLE)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, by a URI with its scheme."""
    with ExitStack() as dropped:
        if request.param == "sqlite":
            yield f"sqlite:///{tmp_path}/skeino.db"
        else:
            server: Any = request.getfixturevalue(f"{request.param}_server")
            fresh = server.create_database()
            dropped.callback(server.drop_database, fresh)
            yield fresh


def ran(command: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`python -m skeino` with this command, to its end; it has none of the variables that it reads, but for these."""
    left_out = ("SKEINO_", "LANGGRAPH_", f"{command.upper()}_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    environment = {**kept, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **variables}
    line = [sys.executable, "-m", "skeino", command, *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment, timeout=60)


def settings_of(uri: str, **more: Any) -> SkeinoSettings:
    return SkeinoSettings(checkpointer_scheme=uri.partition("://")[0], checkpointer_uri=uri, **more)
