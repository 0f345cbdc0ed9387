"""The contract of a metadata store, on each of skeino's own."""

from skeino.testing import MetadataStoreContract


class TestMetadataStore(MetadataStoreContract):
    """All of it: the fixture `store` opens one backend after the other."""
