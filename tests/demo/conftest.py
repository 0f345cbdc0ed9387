from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo.process import Demo, running_demo


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """A demo that this module's tests share; each uses threads of its own."""
    folder: Path = tmp_path_factory.mktemp("demo")
    with running_demo(folder, "--db", "shared.db") as running:
        yield running
