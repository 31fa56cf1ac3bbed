"""What installed packages add (families, operators, metrics): entry points that are loaded when they are needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
Guard = Callable[[Callable[P, R]], Callable[P, R]]


@dataclass(frozen=True)
class Extensions(Generic[T]):
    """What packages add to a registry.

    group: the group of entry points.
    kind, decorator: what is registered, and the decorator that does so, for messages: "family", "family".
    registered: the registry, to which importing the module of an entry point adds.
    guarded: returns what is registered with its functions guarded: their unexpected errors name the package.
    error, expected: what errors are raised as, and which errors of functions pass as they are.
    """

    group: str
    kind: str
    decorator: str
    registered: dict[str, T]
    guarded: Callable[[T, Guard[..., Any]], T]
    error: type[Exception]
    expected: type[Exception]

    def find(self, name: str) -> T | None:
        """Return what is registered under a name, None if nothing is. Packages are asked last.

        Raises:
            error: a package's cannot be loaded, or several packages have one.
        """
        if name not in self.registered:
            found = entry_points(group=self.group, name=name)
            if len(found) > 1:
                raise self.error(
                    f"Several packages register {self._a} {name!r}: {', '.join(sorted(map(_stated, found)))}. "
                    "Uninstall all but one."
                )
            for entry in found:
                self._load(entry)
        return self.registered.get(name)

    def load_all(self) -> None:
        """Load what all packages register.

        Raises:
            error: as `find`; or one has the name of what is registered already.
        """
        for name in sorted({entry.name for entry in entry_points(group=self.group)}):
            self.find(name)

    @property
    def _a(self) -> str:
        return f"an {self.kind}" if self.kind[0] in "aeiou" else f"a {self.kind}"

    def _load(self, entry: EntryPoint) -> None:
        """Import the module of an entry point, which registers the function of its name."""
        before = set(self.registered)
        try:
            entry.load()
        except Exception as error:  # whatever a module of others may raise
            for name in self.registered.keys() - before:
                del self.registered[name]
            raise self._broken(entry, error) from error
        if entry.name not in self.registered:
            raise self.error(
                f"The package {_stated(entry)} has an entry point for {self._a} {entry.name!r}, and its module "
                f"registers none of that name. Decorate the function with `{self.decorator}`, or correct the name."
            )
        self.registered[entry.name] = self.guarded(self.registered[entry.name], self._guard(entry))

    def _guard(self, entry: EntryPoint) -> Guard[..., Any]:
        def guard(function: Callable[P, R]) -> Callable[P, R]:
            @wraps(function)
            def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
                try:
                    return function(*args, **kwargs)
                except self.expected:
                    raise
                except Exception as error:  # whatever a function of others may raise
                    raise self._broken(entry, error) from error

            return guarded

        return guard

    def _broken(self, entry: EntryPoint, error: Exception) -> Exception:
        return self.error(
            f"The {self.kind} {entry.name!r} of the package {_stated(entry)} fails with {type(error).__name__}: "
            f"{error}. Correct the package, or uninstall it."
        )


def _stated(entry: EntryPoint) -> str:
    """Return a package and where its function is defined."""
    package = entry.dist.name if entry.dist else "without a name"
    return f"{package} ({entry.value})"
