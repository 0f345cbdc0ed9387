"""`scrubbed()`: an error's text without its secrets, short enough for a row."""

from __future__ import annotations

import re
from typing import Final

MAX_CHARACTERS: Final = 500

_HIDDEN: Final = "[hidden]"
_KEEP_AND_HIDE: Final = rf"\g<keep>{_HIDDEN}"

_IS: Final = r"\\*['\"]?\s{0,8}(?:=>|:=|[=:]|%3[AaDd])\s{0,8}"  # between a name and its value, also in JSON within JSON

_VALUE: Final = r"""(?:
    b?\\+" (?:(?!\\+").)* (?:\\+"|$)
  | b?\\+' (?:(?!\\+').)* (?:\\+'|$)
  | b?" (?:\\+[^\\]|[^"\\])* (?:"|\\*$)    # one that is not closed was cut off: all of the rest may be secret
  | b?' (?:\\+[^\\]|[^'\\])* (?:'|\\*$)
  | [^\s&;]+
)"""

_NAMED: Final = (
    # user:password@ in a URL, also with "/" or "@" in the password; not the "@" in https://host:80/path@x
    (
        re.compile(
            r"(?P<keep>[a-z][a-z0-9+.-]{0,30}://)(?:[^\s/'\"<>]{1,400}|[^\s/:@]{0,100}:(?!\d{1,5}/)[^\s'\"<>]{1,400})@",
            re.IGNORECASE,
        ),
        rf"{_KEEP_AND_HIDE}@",
    ),
    # -----BEGIN RSA PRIVATE KEY----- …
    (
        re.compile(r"(?P<keep>-----BEGIN [A-Z ]{0,30}KEY-----).*?(?:-----END [A-Z ]{0,30}-----|$)", re.DOTALL),
        _KEEP_AND_HIDE,
    ),
    # Authorization: Bearer …, Token …, Digest username="…", response="…"
    (
        re.compile(
            rf"(?P<keep>\b(?:proxy-)?authorization{_IS}\\*['\"]?)"
            r"(?:(?:[a-z][a-z0-9-]{1,20})\s+)?[^\s,'\"\\]+(?:\"[^\"]*\")?(?:,\s{0,4}[\w-]{1,40}=(?:\"[^\"]*\"|[^\s,]+))*",
            re.IGNORECASE,
        ),
        _KEEP_AND_HIDE,
    ),
    # Cookie: a=…; b=…
    (
        re.compile(rf"(?P<keep>\b(?:set-)?cookies?{_IS}\\*['\"]?)[^\s;'\"]+(?:;\s?[^\s;'\"]+)*", re.IGNORECASE),
        _KEEP_AND_HIDE,
    ),
    # Bearer …, Basic …
    (re.compile(r"(?P<keep>\b(?:bearer|basic)\s{1,8})[^\s,;'\"]{6,}", re.IGNORECASE), _KEEP_AND_HIDE),
    # password=…, 'api_key': '…', client-secret: …, pwd=…, ?sig=…
    (
        re.compile(
            rf"""(?P<keep>(?:
                (?:passw(?:or)?d|passphrase|secret|token|(?:api|access|account|private|signing|encryption)[ _-]?key
                    |credentials?|signature|session[_-]?id|jwt)
                [\w-]{{0,40}} (?:[ ]provided)?
              | (?<![\w-])(?:pwd|pass|auth|sig|sid|key)
            ) (?-x:{_IS})) {_VALUE}""",
            re.IGNORECASE | re.VERBOSE | re.DOTALL,
        ),
        _KEEP_AND_HIDE,
    ),
)
_SPEAKING: Final = (
    # Keys that say what they are: OpenAI's and others' sk-…, GitHub's, Slack's, Amazon's, Google's, GitLab's …
    (
        re.compile(
            r"\b(?:(?:sk|pk|rk|whsec|xai|tvly|pypi|glpat)[-_][\w-]{12,}|gh[pousr]_\w{20,}|github_pat_\w{12,}"
            r"|xox[abeprs]-[\w-]{10,}|A[KS]IA[0-9A-Z]{12,}|AIza[\w-]{20,}|ya29\.[\w-]{10,}|(?:hf|gsk|npm|r8)_\w{16,}"
            r"|lsv2_(?:pt|sk)_\w{12,}|SG\.[\w-]{10,}\.[\w-]{10,}|dapi[0-9a-f]{20,})"
        ),
        _HIDDEN,
    ),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), _HIDDEN),  # JSON web tokens
)
_ALL: Final = (*_NAMED, *_SPEAKING)
_PLAIN: Final = re.compile(r"[\w/.-]*")  # a usual path: nothing in it that `_NAMED` could match
_READ: Final = 4 * MAX_CHARACTERS  # of a longer text no more is looked at: patterns take time
_CUT_OFF: Final = re.compile(r"(?P<keep>[a-z][a-z0-9+.-]{0,30}://)\S*$", re.IGNORECASE)  # before its "@", maybe
_SPACES: Final = re.compile(r"[\t-\r\x1c-\x1f\x85\u2028\u2029]+")
# Controls, halves of characters, and what turns the direction of text or cannot be seen.
_INVISIBLE: Final = re.compile(
    r"[\x00-\x08\x0e-\x1b\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f]+"
)


def scrubbed(text: str, *, limit: int = MAX_CHARACTERS) -> str:
    """One line of at most `limit` characters, with what looks like a password, token or key replaced.

    A pattern can only catch what looks like a secret: an exception should not carry one in the first place.
    """
    cut = len(text) > _READ
    if cut:
        text = text[:_READ].rpartition(" ")[0] or text[:_READ]  # no half of a secret at the end
    plain = _PLAIN.fullmatch(text) is not None
    if not plain:
        text = _INVISIBLE.sub("", _SPACES.sub(" ", text))
        if cut:
            text = _CUT_OFF.sub(_KEEP_AND_HIDE, text)
    for pattern, replacement in _SPEAKING if plain else _ALL:
        text = pattern.sub(replacement, text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
