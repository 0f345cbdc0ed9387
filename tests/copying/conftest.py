"""Places to move from and to: empty databases of each scheme, as many as a test asks for."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from skeino import SkeinoSettings

Places = Callable[[str], SkeinoSettings]


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Places]:
    """A function that makes an empty database of a scheme; all are dropped after the test."""
    with ExitStack() as dropped:
        made = 0

        def make(scheme: str) -> SkeinoSettings:
            nonlocal made
            made += 1
            if scheme == "sqlite":
                uri = f"sqlite:///{tmp_path}/house-{made}.db"
            else:
                server = request.getfixturevalue(f"{scheme}_server")
                uri = server.create_database()
                dropped.callback(server.drop_database, uri)
            return SkeinoSettings(checkpointer_scheme=scheme, checkpointer_uri=uri)

        yield make
