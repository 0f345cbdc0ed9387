"""What an attacker sends: ids, texts, JSON, filters and configs, and exceptions with a secret in their text.

Everything is drawn from a `random.Random`, so the seed and the number of an input make it again.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Final

CANARY: Final = "c4n4ry-s3cr3t-v4lu3"
"""Stands where a password, a token or a key would. It must never be seen again."""

GOOD_IDS: Final = ("t1", "t2", "t3", "ann-1", "雪")
STATUSES: Final = ("running", "success", "error", "interrupted", "idle", "busy")

_NASTY: Final = (
    *("", " ", "None", "null", "undefined", "true", "0", "-1", "NaN", "__empty__", "*", "?", ".", "..", "/"),
    *("'; DROP TABLE app_runs; --", "' OR '1'='1", '" OR ""="', "\\", "\\'", "%", "%s", "%(id)s", "%%", ":id", "?1"),
    *("$1", "$where", "$ne", "$$ROOT", "a.b", "$set.a", "metadata.$", "{}", "{0}", "{thread_id}", "${jndi:ldap://x}"),
    *("../../etc/passwd", "a:b", "a:b:c", "t1:", "a\tb", "a\nb", "a\r\nX-Run-ID: forged", "a\x00b", "\x00", "\x7f"),
    *("\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\u2028b", "a\u0085b", "\u202egnp.exe", "\u2066a\u2069", "\ufeffa"),
    *(
        "\ud800",
        "a\udfffb",
        "\udce4",
        "e\u0301",
        "é",
        "ﬁ",
        "İ",
        "ı",
        "ß",
        "\U0001f600",
        "\U0010ffff",
        "\ufffe",
        "\u200b",
    ),
    *("A", "a", "Ａ", "１", "x" * 255, "x" * 256, "雪" * 255, "\U0001f600" * 255, "x" * 3000, "x" * 70_000),
    "t1 level=CRITICAL msg=forged",
)

_SCALARS: Final = (
    *(None, True, False, 0, 1, -1, 1.0, -0.0, 2.5, 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *(2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**400),
    *(b"bytes", b"\xff", {1, 2}, 1j, (1, 2), range(3), ..., NotImplemented, object, print),
)


class Unprintable:
    """Says nothing of itself."""

    def __repr__(self) -> str:
        raise RuntimeError(CANARY)

    __str__ = __repr__


class Text(str):
    """A string that is more than one."""


def text(dice: Random) -> str:
    """Any text: known tricks, characters from all over, or what is nearly good."""
    kind = dice.random()
    if kind < 0.5:
        return dice.choice(_NASTY)
    if kind < 0.6:
        return "".join(chr(dice.randrange(0x110000)) for _ in range(dice.randrange(1, 12)))
    if kind < 0.7:
        return bytes(dice.randrange(256) for _ in range(dice.randrange(1, 20))).decode("latin-1")
    good = dice.choice(GOOD_IDS)
    place = dice.randrange(len(good) + 1)
    return good[:place] + dice.choice(_NASTY) + good[place:]


def scalar(dice: Random) -> Any:
    """What may stand where a number or a text is expected."""
    kind = dice.random()
    if kind < 0.4:
        return dice.choice(_SCALARS)
    if kind < 0.45:
        return Unprintable()
    return Text(text(dice)) if kind < 0.5 else text(dice)


def value(dice: Random, depth: int = 0) -> Any:
    """Any object: scalars, operators of MongoDB, what contains itself, what is deep or large."""
    kind = dice.random()
    if depth > 4 or kind < 0.45:
        return scalar(dice)
    if kind < 0.6:
        return [value(dice, depth + 1) for _ in range(dice.randrange(4))]
    if kind < 0.8:
        return {_key(dice): value(dice, depth + 1) for _ in range(dice.randrange(4))}
    if kind < 0.9:
        return {dice.choice(("$gt", "$ne", "$where", "$regex", "$in", "$expr")): dice.choice(("", 1, [], "1 == 1"))}
    if kind < 0.95:
        circular: dict[str, Any] = {}
        circular["self"] = [circular]
        return circular
    if kind < 0.99:
        return nested(dice.choice((31, 32, 33, 100, 900)))
    return _large(dice.randrange(6))


@functools.cache  # made once: that takes longer than to refuse them
def _large(kind: int) -> Any:
    return (
        lambda: "x" * 2_000_000,
        lambda: "\U0001f600" * 70_000,
        lambda: list(range(50_000)),
        lambda: {str(number): "x" for number in range(30_000)},
        lambda: nested(100_000),
        lambda: {"k" * 300_000: 1},
    )[kind]()


def nested(depth: int) -> Any:
    deep: Any = 1
    for level in range(depth):
        deep = {"d": deep} if level % 2 else [deep]
    return deep


def mapping(dice: Random) -> Any:
    """Where a JSON object is expected: mostly one."""
    if dice.random() < 0.15:
        return value(dice)
    return {_key(dice): value(dice) for _ in range(dice.randrange(3))}


def _key(dice: Random) -> Any:
    kind = dice.random()
    if kind < 0.05:
        return dice.choice((1, None, True, b"k", ("k",)))
    return dice.choice(("k", "run_id", "source", "step", "a.b")) if kind < 0.4 else text(dice)


def an_id(dice: Random) -> Any:
    """Where an id is expected: a good one, a text, or anything."""
    kind = dice.random()
    return dice.choice(GOOD_IDS) if kind < 0.5 else text(dice) if kind < 0.85 else value(dice)


def configurable(dice: Random) -> dict[str, Any]:
    """A graph's `configurable` as a client may have sent it, but for the thread."""
    found: dict[str, Any] = {}
    if dice.random() < 0.6:
        found["checkpoint_ns"] = dice.choice(("", "", an_id(dice)))
    if dice.random() < 0.4:
        found["checkpoint_id"] = an_id(dice)
    for _ in range(dice.randrange(3)):
        found[text(dice)] = value(dice)
    return found


def search(dice: Random) -> dict[str, Any]:
    """The arguments of a search, each of them good or not."""
    given: dict[str, Any] = {}
    for name, draw in _SEARCHED.items():
        if dice.random() < 0.2:
            given[name] = value(dice) if dice.random() < 0.4 else draw(dice)
    if dice.random() < 0.03:
        given[dice.choice(_NASTY) or "x"] = value(dice)
    return given


_SEARCHED: Final[Mapping[str, Callable[[Random], Any]]] = {
    "thread_id": an_id,
    "status": lambda dice: dice.choice((dice.choice(STATUSES), [dice.choice(STATUSES), text(dice)])),
    "ids": lambda dice: [an_id(dice) for _ in range(dice.randrange(4))],
    "owner": an_id,
    "metadata": mapping,
    "created_after": scalar,
    "created_before": scalar,
    "sort_by": lambda dice: dice.choice(("created_at", "updated_at", "thread_id", text(dice))),
    "sort_order": lambda dice: dice.choice(("asc", "desc", text(dice))),
    "limit": lambda dice: dice.choice((1, 10, 1000, 1001, 0, scalar(dice))),
    "offset": lambda dice: dice.choice((0, 1, 2**31, -1, scalar(dice))),
}

# ── Exceptions ───────────────────────────────────────────────────────────────────────────────────────────────

SPOKEN: Final = (
    f"connection to postgresql://app:{CANARY}@db.example/chat failed",
    f"connection to postgresql://app:{CANARY}/x@db.example/chat failed",
    f"could not connect: mongodb+srv://app:{CANARY}@a@cluster.example/?w=majority",
    f"redis://:{CANARY}@cache:6379/0 timed out",
    f"Authorization: Bearer {CANARY}",
    f"401 for {{'Authorization': 'Bearer {CANARY}', 'Accept': '*/*'}}",
    f"headers: authorization=Token {CANARY}",
    f"Proxy-Authorization: Basic {CANARY}==",
    f"Cookie: session={CANARY}; theme=dark",
    f"Set-Cookie: sid={CANARY}; HttpOnly",
    f"X-Api-Key: {CANARY}",
    f"Incorrect API key provided: {CANARY}. You can find your API key at https://example.com",
    f"GET https://api.example/v1?api_key={CANARY}&q=1 failed",
    f"https://account.blob.example/c?sv=2022&sig={CANARY}%3D",
    f"password={CANARY} host=db",
    f"PASSWORD = '{CANARY} with spaces'",
    f"pwd={CANARY};UID=app",
    f"AccountKey={CANARY}==;EndpointSuffix=example",
    f'{{"password": "{CANARY}", "user": "app"}}',
    f'{{\\"api_key\\": \\"{CANARY}\\"}}',
    f'{{"client_secret": "a\\"{CANARY}"}}',
    f"{{'refresh_token': b'{CANARY}'}}",
    f"access_token: {CANARY}, expires",
    f"OPENAI_API_KEY={CANARY}",
    f"sk-proj-{CANARY}",
    f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
    f"eyJhbGciOiJIUzI1NiJ9.{CANARY}.c2ln",
    f"github_pat_{CANARY.replace('-', '_')}",
)


class SilentError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError(CANARY)


class LongError(Exception):
    """Its text is long."""

    def __str__(self) -> str:
        return f"{'x' * 3_000_000} {self.args[0]}"


def exception(dice: Random) -> Exception:
    """One whose text has the canary in it, in one of the forms that secrets have. It has the attribute `is_hostile`."""
    made = _exception(dice)
    made.is_hostile = True  # type: ignore[attr-defined]
    return made


def _exception(dice: Random) -> Exception:
    spoken = dice.choice(SPOKEN)
    kind = dice.random()
    if kind < 0.3:  # so that a bound falls anywhere within it
        spoken = f"{dice.choice(('x', 'word ', 'é'))[:1] * dice.randrange(2200)}{dice.choice(' ./(')}{spoken}"
    elif kind < 0.45:
        spoken = f"\x1b[31mline\r\nERROR forged {spoken}\x1b[0m\u2028\u202e\x00\ud800"
    elif kind < 0.5:
        return SilentError(spoken)
    elif kind < 0.52:
        return LongError(spoken)
    elif kind < 0.6:
        return ExceptionGroup(spoken, [RuntimeError(spoken)])
    elif kind < 0.7:
        named: type[Exception] = type(f"Er\x1b[31m\r\nror password={CANARY}", (RuntimeError,), {})
        return named(spoken)
    return dice.choice((RuntimeError, ValueError, KeyError, TimeoutError, OSError, ConnectionError))(spoken)
