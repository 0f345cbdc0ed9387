"""What an example's header says to expect, read and acted out against a server."""

import re
import shlex
from dataclasses import dataclass
from itertools import takewhile

from tests.http_client import httpx

PROMPT = "    $ curl "
HEADERS = {"-H", "--header"}


@dataclass(frozen=True)
class Step:
    """One curl line, and the lines of output that follow it; `…` in them stands for anything."""

    command: str
    output: str

    def act(self, base_url: str) -> None:
        """Send the command's request to `base_url`, and compare the answer."""
        answer = _send(self.command, base_url)
        pattern = ".*".join(re.escape(part) for part in self.output.split("…"))
        assert re.fullmatch(pattern, answer.text.rstrip()), f"{self.command}\nanswered {answer.text}, not {self.output}"


def steps_of(header: str) -> list[list[Step]]:
    """The steps before, between and after the places where the header says to start the server again."""
    return [_steps(part) for part in re.split(r"start it again:", header)]


def _steps(text: str) -> list[Step]:
    lines = text.splitlines()
    steps = []
    for number, line in enumerate(lines):
        if line.startswith(PROMPT):
            output = takewhile(lambda one: one.startswith("    ") and not one.startswith(PROMPT), lines[number + 1 :])
            steps.append(Step(line.strip().removeprefix("$ "), "\n".join(one.strip() for one in output)))
    return steps


def _send(command: str, base_url: str) -> httpx.Response:
    """What curl does with the few options that the headers use."""
    words = iter(shlex.split(command)[1:])
    method, url, headers, content = "GET", "", {}, None
    for word in words:
        if word == "-X":
            method = next(words)
        elif word in HEADERS:
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-d":
            content = next(words)
        else:
            assert word.startswith("http://127.0.0.1:8000/"), f"{word} is no option this knows, nor the server's URL"
            url = word.replace("http://127.0.0.1:8000", base_url)
    return httpx.request(method, url, headers=headers, content=content, timeout=20)
