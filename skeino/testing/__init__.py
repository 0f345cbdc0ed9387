"""Tests for a metadata store of one's own: the contract that skeino's own stores are tested with.

    class TestMyStore(MetadataStoreContract):
        @pytest_asyncio.fixture
        async def store(self):
            async with open_my_store() as store:   # a fresh, empty one for each test
                yield store

Needs the extra `testing`: pytest, pytest-asyncio and hypothesis. Nothing else in skeino imports it.
"""

from importlib.util import find_spec
from pkgutil import iter_modules

from skeino.errors import MissingDriverError

for _tool in ("pytest", "pytest_asyncio", "hypothesis"):
    if find_spec(_tool) is None:
        raise MissingDriverError(
            f"skeino.testing needs the package {_tool.replace('_', '-')!r}: run pip install 'skeino-asgi[testing]'.",
            name=_tool,
        )

import pytest  # noqa: E402 – after the sentence that names what is missing

# Before they are imported: else a failed assertion shows no values.
pytest.register_assert_rewrite(*(module.name for module in iter_modules(__path__, f"{__name__}.")))

from skeino.testing.claims import ClaimContract  # noqa: E402
from skeino.testing.contract import MetadataStoreContract  # noqa: E402
from skeino.testing.leases import LeaseContract  # noqa: E402
from skeino.testing.making import (  # noqa: E402
    T0,
    WORKER,
    at,
    ending,
    everything,
    finished,
    started,
    the_run,
    the_thread,
)
from skeino.testing.sweeps import SweepContract  # noqa: E402

__all__ = [
    "T0",
    "WORKER",
    "ClaimContract",
    "LeaseContract",
    "MetadataStoreContract",
    "SweepContract",
    "at",
    "ending",
    "everything",
    "finished",
    "started",
    "the_run",
    "the_thread",
]
