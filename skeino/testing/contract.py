"""The whole contract of a metadata store, as one class of tests."""

import pytest

from skeino.persistence import MetadataStoreProtocol
from skeino.testing.concurrency import ConcurrencyContract
from skeino.testing.deleting import DeletingContract
from skeino.testing.ends import EndsContract
from skeino.testing.runs import RunsContract
from skeino.testing.searching import SearchingContract
from skeino.testing.searching_at_random import SearchingAtRandomContract
from skeino.testing.threads import ThreadsContract
from skeino.testing.validation import ValidationContract


@pytest.mark.asyncio
class MetadataStoreContract(
    RunsContract,
    EndsContract,
    ThreadsContract,
    DeletingContract,
    SearchingContract,
    SearchingAtRandomContract,
    ValidationContract,
    ConcurrencyContract,
):
    """What `MetadataStoreProtocol` promises, tested on the store of a fixture `store`.

    A subclass named `Test…` has the fixture, or finds it in a `conftest.py`. Each test wants an empty store of its own.
    An asynchronous fixture is `@pytest_asyncio.fixture`; in pytest-asyncio's mode `auto`, `@pytest.fixture` will do.
    """

    @pytest.fixture(autouse=True)
    def _store_is_a_metadata_store(self, store: object) -> None:
        """Say so at once where the fixture gives something else, which each test would fail on in its own way."""
        if not isinstance(store, MetadataStoreProtocol):
            operations = [name for name in vars(MetadataStoreProtocol) if not name.startswith("_")]
            missing = ", ".join(name for name in operations if not hasattr(store, name))
            raise TypeError(
                f"The fixture 'store' gave {type(store).__name__}, which is no metadata store (it has no {missing}): "
                "yield the open store itself."
            )
