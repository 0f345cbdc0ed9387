"""The tables of docs/endings.md, made of what the tests expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version

from tests.endings.endings import ENDINGS, Ending, Row
from tests.endings.servers import ROOT, SERVERS, Server

PAGE = ROOT / "docs" / "endings.md"
BEGIN = "<!-- what follows is written by: python -m tests.endings -->"
END = "<!-- until here -->"

_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def tables(endings: Mapping[str, Sequence[Ending]] = ENDINGS) -> str:
    """A heading and a table for each group of endings, then the reasons for what differs on one server."""
    reasons: list[str] = []
    parts = [f"### {title}\n\n{_table(group, reasons)}" for title, group in endings.items()]
    notes = "\n".join(f"- {_number(reasons, reason)} {reason}" for reason in reasons)
    return "\n\n".join([*parts, f"### What differs\n\n{notes}"])


def versions() -> str:
    names = sorted({server.module for server in SERVERS} | {"uvloop", "httptools", "websockets", "starlette"})
    return f"Versions: {', '.join(f'{name} {version(name)}' for name in names)}."


def written(page: str) -> str:
    """The page with today's tables."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"docs/endings.md lacks the line {BEGIN}"
    assert end, f"docs/endings.md lacks the line {END}"
    return f"{before}{BEGIN}\n\n{tables()}\n\n{versions()}\n\n{END}{after}"


def _table(endings: Sequence[Ending], reasons: list[str]) -> str:
    lines = [f"| | {' | '.join(server.name for server in SERVERS)} |", "|---" * (len(SERVERS) + 1) + "|"]
    lines += [
        f"| {ending.name} | {' | '.join(_cell(ending, server, reasons) for server in SERVERS)} |" for ending in endings
    ]
    return "\n".join(lines)


def _cell(ending: Ending, server: Server, reasons: list[str]) -> str:
    if server not in ending.servers:
        return "–"
    deviation = ending.deviations.get(server)
    if deviation is None:
        return ending.shown or _text(ending.row)
    if deviation.reason not in reasons:
        reasons.append(deviation.reason)
    return f"{_text(deviation.row)} {_number(reasons, deviation.reason)}"


def _text(row: Row) -> str:
    if row.status is None:
        return "no run"
    if row.status == "running":
        return "stays `running`"
    return f"`{row.status}`" if row.code is None else f"`{row.status}` {row.code}"


def _number(reasons: list[str], reason: str) -> str:
    return str(reasons.index(reason) + 1).translate(_SUPERSCRIPTS)
