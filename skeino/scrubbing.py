"""`scrubbed()`: an error's text without its secrets, short enough for a row."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 500

_HIDDEN: Final = "[hidden]"
_NAMED: Final = (
    # user:password@ in a URL
    (re.compile(r"(?P<keep>\b[a-z][a-z0-9+.-]{0,30}://)[^\s/@]{1,400}@", re.IGNORECASE), rf"\g<keep>{_HIDDEN}@"),
    # Authorization: Bearer …, Basic …
    (re.compile(r"(?P<keep>\b(?:bearer|basic)\s{1,8})[^\s,;'\"]{6,}", re.IGNORECASE), rf"\g<keep>{_HIDDEN}"),
    # password=…, 'api_key': '…', client-secret: …
    (
        re.compile(
            r"(?P<keep>(?<![\w-])[\w-]{0,40}?(?:passw(?:or)?d|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key"
            r"|authorization|credentials?)[\w-]{0,40}['\"]?\s{0,8}[=:]\s{0,8})"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&)\]}]+)",
            re.IGNORECASE,
        ),
        rf"\g<keep>{_HIDDEN}",
    ),
)
_SPEAKING: Final = (
    # keys that say what they are: sk-…, ghp_…, xoxb-…, AKIA…, and JSON web tokens
    (
        re.compile(r"\b(?:sk|pk|rk)[-_][\w-]{12,}|\bgh[pousr]_\w{20,}|\bxox[abprs]-[\w-]{10,}|\bAKIA[0-9A-Z]{12,}"),
        _HIDDEN,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), _HIDDEN),
)
_ALL: Final = (*_NAMED, *_SPEAKING)
_PLAIN: Final = re.compile(r"[\w/.-]*")  # a usual path: nothing in it that `_NAMED` could match
_READ: Final = 4 * MAX_CHARACTERS  # of a longer text no more is looked at: patterns take time
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]+")


def scrubbed(text: str, *, limit: int = MAX_CHARACTERS) -> str:
    """One line of at most `limit` characters, with what looks like a password, token or key replaced.

    A pattern can only catch what looks like a secret: an exception should not carry one in the first place.
    """
    if len(text) > _READ:
        text = text[:_READ].rpartition(" ")[0] or text[:limit]  # no half of a secret at the end
    plain = _PLAIN.fullmatch(text) is not None
    if not plain:
        text = _UNPRINTABLE.sub(" ", text)
    for pattern, replacement in _SPEAKING if plain else _ALL:
        text = pattern.sub(replacement, text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
