"""Which requests are meant: paths below the application's root, a template that names the thread, a choice."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING
from urllib.parse import unquote

from skeino.errors import ConfigurationError

if TYPE_CHECKING:
    from starlette.types import Scope

PathChoice = Collection[str] | Callable[["Scope"], bool]
"""Paths, `"/api/*"` for all below one, or a predicate of the scope."""


def path_below_root(scope: Scope) -> str:
    """The path as the application's routes know it (ASGI: `path` includes `root_path`)."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root + "/") and not _is_below_already(scope, root + path):
        return path[len(root) :]
    return path


def _is_below_already(scope: Scope, whole: str) -> bool:
    """Litestar takes `root_path` off the path before its middlewares see it; the raw path keeps it."""
    raw: bytes = scope.get("raw_path") or b""
    return unquote(raw.partition(b"?")[0].decode("latin-1")) == whole


def compiled_template(template: str) -> re.Pattern[str]:
    """A pattern with the group `thread_id` for `"/threads/{thread_id}"`; what follows in the path does not matter.

    Raises:
        ConfigurationError: it does not begin with "/", does not have `{thread_id}` once, or has other braces than
            those of a name.
    """
    if template.count("{thread_id}") != 1 or not template.startswith("/"):
        raise ConfigurationError("thread_path must begin with '/' and have {thread_id} once: '/threads/{thread_id}'.")
    names = re.findall(r"\{([^\W\d]\w*)\}", template)
    if len(set(names)) < len(names) or template.count("{") + template.count("}") != 2 * len(names):
        raise ConfigurationError("thread_path knows {name} only, each once: '/users/{user}/threads/{thread_id}'.")
    parts = re.split(r"\{(\w+)\}", template.rstrip("/"))
    pattern = "".join(re.escape(part) if index % 2 == 0 else f"(?P<{part}>[^/]+)" for index, part in enumerate(parts))
    return re.compile(f"{pattern}(?:/.*)?$", re.DOTALL)


def predicate_of(choice: PathChoice, name: str) -> Callable[[Scope], bool]:
    """Whether a scope is among those chosen.

    Raises:
        ConfigurationError: a path does not begin with "/", or has a "*" that is not its last part.
    """
    if callable(choice):
        return choice
    given: object = choice
    if (
        isinstance(given, str)
        or not isinstance(given, Collection)
        or not all(str(one).startswith("/") for one in given)
    ):
        raise ConfigurationError(f"{name} must be a collection of paths that begin with '/', or a predicate.")
    for path in choice:
        if "*" in path.removesuffix("/*"):
            raise ConfigurationError(
                f"{name} has {path!r}, in which '*' would be a mere character: end a path with '/*' for all below it, "
                "or give a predicate."
            )
    exact = frozenset(path for path in choice if not path.endswith("/*"))
    prefixes = tuple(path[:-1] for path in choice if path.endswith("/*"))

    def matches(scope: Scope) -> bool:
        path = path_below_root(scope)
        return path in exact or path.startswith(prefixes) if prefixes else path in exact

    return matches
