"""What PostgreSQL's writer sends."""

from typing import Any

import pytest

from skeino.persistence.postgres.writer import Fetch, Writer


def sent_by(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements that it sends from here on, in their order."""
    sent: list[str] = []

    def recording(fetch: Fetch) -> Fetch:
        async def recorded(statement: str, values: Any) -> Any:
            sent.append(statement)
            return await fetch(statement, values)

        return recorded

    monkeypatch.setattr(writer, "_fetch", recording(writer._fetch))
    monkeypatch.setattr(writer, "_fetch_together", recording(writer._fetch_together))
    return sent
