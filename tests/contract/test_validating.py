"""What checking a value costs: no more than the limit allows, however much is given."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from skeino.errors import InvalidInputError
from skeino.validation import validate_json_object, validate_metadata_filter


class Endless(Mapping[str, str]):
    """One that never stops giving: what is counted is what was asked of it."""

    def __init__(self) -> None:
        self.given = 0

    def __getitem__(self, key: str) -> str:
        return "x"

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[str]:
        while True:
            self.given += 1
            yield str(self.given)


@pytest.mark.parametrize("wrapped", [lambda value: value, lambda value: {"a": [value]}])
def test_a_huge_object_is_not_read_to_its_end(wrapped: Any) -> None:
    endless = Endless()
    with pytest.raises(InvalidInputError, match="larger than 256 KiB"):
        validate_json_object(wrapped(endless), "metadata")
    assert endless.given < 100_000


def test_a_filter_s_key_is_not_repeated_at_length() -> None:
    with pytest.raises(InvalidInputError) as refused:
        validate_metadata_filter({"k" * 100_000: []})
    assert len(str(refused.value)) < 200
