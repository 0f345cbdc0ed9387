"""The code blocks of a Markdown file, and a way to run its Python ones as they stand, in their order."""

import ast
import inspect
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

_NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block; `not_run` is the reason given in a comment before it."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path, language: str | None = None) -> list[Block]:
    """The page's fenced blocks, of one language or of all."""
    return [block for block in _blocks(page) if language in (None, block.language)]


async def run_python(page: str, **names: Any) -> dict[str, Any]:
    """Run a page's Python blocks in one namespace that begins with `names`; `await` may stand at the top level."""
    namespace: dict[str, Any] = {"__name__": "__docs__", **names}
    for block in blocks_of(ROOT / page, "python"):
        if block.not_run is None:
            await run_block(block, namespace)
    return namespace


async def run_block(block: Block, namespace: dict[str, Any]) -> None:
    source = "\n" * block.line + block.code  # tracebacks name the page's own lines
    code = compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    waiting = eval(code, namespace)
    if inspect.isawaitable(waiting):
        await waiting


def exported(code: str) -> dict[str, str]:
    """The `SKEINO_*` variables that a shell has after these lines."""
    command = ["sh", "-ec", f"{code}\nenv"]
    environment = {"PATH": os.environ["PATH"]}
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if line.startswith("SKEINO_"))


def _blocks(page: Path) -> Iterator[Block]:
    start, language, code, not_run = 0, "", list[str](), None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if start and line.strip() == "```":
            yield Block(page, start, language, "\n".join(code) + "\n", not_run)
            start, not_run = 0, None
        elif start:
            code.append(line)
        elif line.startswith("```"):
            start, language, code = number, line[3:].strip(), []
        elif found := _NOT_RUN.fullmatch(line.strip()):
            not_run = found["reason"]
        elif line.strip():
            not_run = None
    assert not start, f"{page}: the block of line {start} has no end"
