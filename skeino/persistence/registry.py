"""Which builders a scheme stands for. A built-in backend is imported when its scheme is chosen, not before."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from skeino.errors import ConfigurationError, MissingDriverError, UnknownSchemeError
from skeino.settings import did_you_mean

if TYPE_CHECKING:
    from langgraph.checkpoint.base import BaseCheckpointSaver

    from skeino.persistence.protocol import MetadataStoreProtocol
    from skeino.persistence.rows import ThreadTTL

T = TypeVar("T")
Opener = Callable[["CheckpointerSpec"], AbstractAsyncContextManager[T]]

ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {"sqlite3": "sqlite", "postgresql": "postgres", "mongo": "mongodb"}
)


@dataclass(frozen=True, slots=True)
class CheckpointerSpec:
    """What a builder is given: the settings' three fields, and what both halves of one opening share."""

    scheme: str
    """Lower case, aliases resolved."""
    uri: str | None = field(default=None, repr=False)
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    thread_ttl: ThreadTTL | None = None
    """The `ttl` of threads that are not given one."""
    _shared: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    _stack: AsyncExitStack | None = field(default=None, repr=False, compare=False)

    async def share(self, open_resource: Opener[T]) -> T:
        """Open a resource once for both halves: `pool = await spec.share(open_pool)`.

        `open_resource` is a function of the spec that returns an async context manager. The first caller
        enters it, the other gets the same object, and it is left after both halves are closed.
        """
        if open_resource not in self._shared:
            if self._stack is None:
                raise ConfigurationError("A spec shares resources only while open_persistence() has it open.")
            self._shared[open_resource] = await self._stack.enter_async_context(open_resource(self))
        resource: T = self._shared[open_resource]
        return resource

    def required_uri(self, example: str) -> str:
        """The URI.

        Raises:
            ConfigurationError: there is none; the message shows the example.
        """
        if not self.uri or not self.uri.strip():
            raise ConfigurationError(
                f"The scheme {self.scheme!r} needs checkpointer_uri (SKEINO_CHECKPOINTER_URI), for example {example}."
            )
        return self.uri

    def checked_options(self, **known: tuple[type[Any] | tuple[type[Any], ...], Any]) -> dict[str, Any]:
        """The options, each known one with its default: `checked_options(setup_schema=(bool, True))`.

        Raises:
            ConfigurationError: an option is unknown, of another type, or negative; of a number of seconds, zero.
        """
        for name, value in self.options.items():
            if name not in known:
                hint = did_you_mean(name, sorted(known))
                raise ConfigurationError(f"The scheme {self.scheme!r} has no checkpointer option {name!r}: {hint}")
            kind = known[name][0]
            kinds = kind if isinstance(kind, tuple) else (kind,)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = " or ".join(one.__name__ for one in kinds)
                raise ConfigurationError(
                    f"The checkpointer option {name!r} must be of type {wanted}, not {type(value).__name__}."
                )
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not (math.isfinite(value) and (value > 0 or (value == 0 and float not in kinds))):
                raise ConfigurationError(f"The checkpointer option {name!r} must be a number above zero.")
        return {name: self.options.get(name, default) for name, (_, default) in known.items()}


def prefix_of(uri: str) -> str | None:
    """What a connection string begins with, if that can be a scheme: else it may be a password."""
    prefix, separator, _ = uri.partition("://")
    is_scheme = separator and len(prefix) < 24 and re.fullmatch(r"[A-Za-z]+[0-9]?(\+[A-Za-z0-9]+)?", prefix)
    return prefix if is_scheme else None


def beginning_of(uri: str) -> str:
    """How a connection string begins, for messages."""
    prefix = prefix_of(uri)
    return "begins with no scheme" if prefix is None else f"begins with {prefix!r}"


CheckpointerBuilder = Callable[[CheckpointerSpec], AbstractAsyncContextManager["BaseCheckpointSaver[Any]"]]
MetadataStoreBuilder = Callable[[CheckpointerSpec], AbstractAsyncContextManager["MetadataStoreProtocol"]]
CheckpointerBuilderT = TypeVar("CheckpointerBuilderT", bound=CheckpointerBuilder)
MetadataStoreBuilderT = TypeVar("MetadataStoreBuilderT", bound=MetadataStoreBuilder)


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """A backend of skeino's own: its module has `open_saver` and, where there is one, `open_store`."""

    module: str
    extra: str | None
    drivers: tuple[str, ...] = ()
    durable: bool = True
    has_store: bool = True


_BUILT_IN: Final[Mapping[str, _BuiltIn]] = MappingProxyType(
    {
        "memory": _BuiltIn("skeino.persistence.memory", None, durable=False),
        "sqlite": _BuiltIn("skeino.persistence.sqlite", "sqlite", ("aiosqlite", "langgraph.checkpoint.sqlite")),
        "postgres": _BuiltIn(
            "skeino.persistence.postgres", "postgres", ("psycopg", "psycopg_pool", "langgraph.checkpoint.postgres")
        ),
        "mongodb": _BuiltIn(
            "skeino.persistence.mongodb", "mongodb", ("pymongo", "bson", "langgraph.checkpoint.mongodb")
        ),
        "redis": _BuiltIn(
            "skeino.persistence.redis", "redis", ("redis", "redisvl", "langgraph.checkpoint.redis"), has_store=False
        ),
    }
)

_checkpointers: dict[str, tuple[CheckpointerBuilder, bool]] = {}
_metadata_stores: dict[str, MetadataStoreBuilder] = {}


def register_checkpointer(
    scheme: str, *, durable: bool = True, replace: bool = False
) -> Callable[[CheckpointerBuilderT], CheckpointerBuilderT]:
    """Register a checkpointer under a scheme of your own.

    The decorated builder takes the `CheckpointerSpec` and returns an async context manager that yields a
    LangGraph saver (`@asynccontextmanager`). What it yields is stamped by skeino.

    Args:
        scheme: the name for `checkpointer_scheme`; case does not matter.
        durable: whether its state outlives the process; a durable one wants a metadata store, too.
        replace: allow a scheme that is registered or built in already.

    Raises:
        ConfigurationError: the scheme is taken, or no plain name.
    """

    def register(builder: CheckpointerBuilderT) -> CheckpointerBuilderT:
        name = _free_name(scheme, {*_checkpointers, *_BUILT_IN}, replace, "register_checkpointer")
        _checkpointers[name] = (builder, durable)
        return builder

    return register


def register_metadata_store(
    scheme: str, *, replace: bool = False
) -> Callable[[MetadataStoreBuilderT], MetadataStoreBuilderT]:
    """Register the metadata store that goes with a scheme: the builder yields a `MetadataStoreProtocol`.

    Raises:
        ConfigurationError: the scheme is taken, or no plain name.
    """

    def register(builder: MetadataStoreBuilderT) -> MetadataStoreBuilderT:
        taken = {*_metadata_stores, *(name for name, built_in in _BUILT_IN.items() if built_in.has_store)}
        _metadata_stores[_free_name(scheme, taken, replace, "register_metadata_store")] = builder
        return builder

    return register


def normalised_scheme(scheme: str) -> str:
    """The scheme in lower case, its alias resolved (`PostgreSQL` → `postgres`)."""
    lowered = scheme.strip().lower()
    return ALIASES.get(lowered, lowered)


def checkpointer_builder(scheme: str) -> tuple[CheckpointerBuilder, bool]:
    """The builder of a normalised scheme, and whether what it builds is durable.

    Raises:
        UnknownSchemeError: nothing is registered under it.
        MissingDriverError: its extra is not installed.
    """
    if scheme in _checkpointers:
        return _checkpointers[scheme]
    if scheme in _BUILT_IN:
        return _load(scheme).open_saver, _BUILT_IN[scheme].durable
    known = sorted({*_BUILT_IN, *_checkpointers})
    close = difflib.get_close_matches(scheme, [*known, *ALIASES], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if scheme in _metadata_stores:
        hint = "it has a metadata store, but no checkpointer; "
    raise UnknownSchemeError(
        f"There is no checkpointer_scheme {scheme[:40]!r}: {hint}known are {', '.join(known)}; "
        "others are added with @register_checkpointer before start-up."
    )


def metadata_store_builder(scheme: str) -> MetadataStoreBuilder | None:
    """The metadata store's builder of a normalised scheme, or None if the scheme has none."""
    if scheme in _metadata_stores:
        return _metadata_stores[scheme]
    if scheme in _BUILT_IN and _BUILT_IN[scheme].has_store and scheme not in _checkpointers:
        builder: MetadataStoreBuilder = _load(scheme).open_store
        return builder
    return None


def forgets_rows(scheme: str) -> bool:
    """Whether the state of a normalised scheme outlives its threads and runs, as far as is known now.

    True, too, of a scheme that nobody has registered yet.
    """
    if scheme in _metadata_stores:
        return False
    if scheme in _checkpointers:
        return _checkpointers[scheme][1]
    return scheme not in _BUILT_IN or (_BUILT_IN[scheme].durable and not _BUILT_IN[scheme].has_store)


def keeps_rows(scheme: str) -> bool:
    """Whether the threads and runs of a normalised scheme are kept in a database.

    Raises:
        UnknownSchemeError, MissingDriverError: as `checkpointer_builder`.
    """
    checkpointer_builder(scheme)
    return scheme != "memory" and metadata_store_builder(scheme) is not None


def schema_of(scheme: str) -> Any:
    """The backend of a normalised scheme whose database has a versioned schema: `read_schema`, `schema_script`.

    Raises:
        ConfigurationError: it has none that skeino makes.
        MissingDriverError: its extra is not installed.
    """
    if is_built_in(scheme) and _BUILT_IN[scheme].durable and _BUILT_IN[scheme].has_store:
        return _load(scheme)
    why = {
        "memory": "keeps nothing beyond its process",
        "redis": "has indexes that LangGraph's saver makes at start-up",
    }.get(scheme, "is not one of skeino's own")
    raise ConfigurationError(
        f"The scheme {scheme[:40]!r} has no schema to set up, as it {why}: set SKEINO_CHECKPOINTER_SCHEME to sqlite, "
        "postgres or mongodb."
    )


def doctor_of(scheme: str) -> Any:
    """`examine` of the backend of a normalised scheme; None if it has none that is skeino's own."""
    if is_built_in(scheme) and _BUILT_IN[scheme].durable and _BUILT_IN[scheme].has_store:
        return _load(scheme).examine
    return None


def is_built_in(scheme: str) -> bool:
    """Whether a normalised scheme is skeino's own, and has not been replaced."""
    return scheme in _BUILT_IN and scheme not in _checkpointers


def entered(builder: Callable[[CheckpointerSpec], Any], spec: CheckpointerSpec) -> AbstractAsyncContextManager[Any]:
    """The context manager that a builder makes of the spec.

    Raises:
        ConfigurationError: it makes none, most likely because `@asynccontextmanager` was forgotten.
    """
    made = builder(spec)
    if isinstance(made, AbstractAsyncContextManager):
        return made
    if inspect.iscoroutine(made):
        made.close()
    name = getattr(builder, "__name__", type(builder).__name__)
    raise ConfigurationError(
        f"The builder {name!r} of scheme {spec.scheme!r} returned a {type(made).__name__}, no async context manager: "
        "put @asynccontextmanager under @register_checkpointer, and yield in it."
    )


def _load(scheme: str) -> Any:
    built_in = _BUILT_IN[scheme]
    try:
        return import_module(built_in.module)
    except ImportError as exc:
        if exc.name is None or not any(f"{exc.name}.".startswith(f"{driver}.") for driver in built_in.drivers):
            raise
        package = "pymongo" if exc.name.startswith("bson") else exc.name  # PyPI's own bson is another project
        raise MissingDriverError(
            f"The scheme {scheme!r} needs the package {package!r}: run pip install 'skeino-asgi[{built_in.extra}]'.",
            name=exc.name,
        ) from exc


def _free_name(scheme: object, taken: Collection[str], replace: bool, decorator: str) -> str:
    if not isinstance(scheme, str):
        raise ConfigurationError(f'@{decorator} takes the name of a scheme: write @{decorator}("mydb").')
    name = normalised_scheme(scheme)
    if not name or not all(character.isalnum() or character in "+-._" for character in name):
        raise ConfigurationError(f"{scheme[:40]!r} is no scheme: use letters, digits, '+', '-', '.' and '_'.")
    if not replace and name in taken:
        raise ConfigurationError(
            f"The scheme {name!r} is registered already: choose another name, or say {decorator}(…, replace=True)."
        )
    return name
