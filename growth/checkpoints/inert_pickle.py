"""Pickles of tensors, read without running anything.

An unpickler replaces the few classes that such pickles need by inert records, and refuses all others by name.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, ClassVar

from growth.errors import CheckpointError

LARGEST_TUPLE = 1000  # values in a tuple and the tuples within it; shapes and storages have about ten


class Record:
    """An inert object in place of one that a pickle describes: it keeps the arguments and the state."""

    arguments: tuple[Any, ...] = ()
    state: Any = MappingProxyType({})

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


def natural(values: Any) -> tuple[int, ...]:
    """Values as a tuple of natural numbers.

    Raises:
        ValueError: they are anything else.
    """
    if not isinstance(values, tuple | list) or any(type(n) is not int or not 0 <= n < 2**63 for n in values):
        raise ValueError(f"{reprlib.repr(values)} are not natural numbers")  # their full repr may be endless
    return tuple(values)


class InertUnpickler(pickle._Unpickler):
    """An unpickler that replaces the names in `known` by inert objects and refuses all others.

    It is the one in Python: that in C allocates any memo index that a pickle names. The total size of nested tuples is
    bounded, because those that repeat each other take exponential time to hash.
    """

    stack: list[Any]  # of the base class
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, content: bytes, where: str, known: Mapping[str, Any]):
        super().__init__(io.BytesIO(content))
        self._where, self._known = where, known
        self._sizes: dict[int, tuple[int, Any]] = {}  # by id, with the tuple, whose id then stays its own

    def load_tuple_of(self, load: Callable[[Any], None]) -> None:
        """Load a tuple, by the base class's function for an opcode, and bound its size."""
        load(self)
        made = self.stack[-1]
        size = 1 + sum(self._sizes.get(id(item), (1, None))[0] for item in made)
        if size > LARGEST_TUPLE:
            raise ValueError(f"a tuple holds more than {LARGEST_TUPLE:,} values")
        self._sizes[id(made)] = size, made

    def find_class(self, module: str, name: str) -> Any:
        """What replaces a class.

        Raises:
            CheckpointError: it is not in `known`.
        """
        if f"{module}.{name}" not in self._known:
            raise CheckpointError(
                f"{self._where} asks for {module}.{name}, which no checkpoint of tensors needs. Pickles can run code: "
                "nothing of this one was run. Save the model's state dict by itself."
            )
        return self._known[f"{module}.{name}"]

    def persistent_load(self, saved: Any) -> Any:
        """What a pickle says of a storage."""
        return saved

    def load(self) -> Any:
        """The object, with inert ones in place of others.

        Raises:
            CheckpointError: the pickle is damaged, or asks for a class that is not in `known`.
        """
        try:
            return super().load()
        except CheckpointError:
            raise
        except Exception as error:  # a damaged pickle raises almost anything
            raise CheckpointError(f"{self._where} cannot be read: {error!r}.") from None


for (_code,) in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    InertUnpickler.dispatch[_code] = partial(InertUnpickler.load_tuple_of, load=InertUnpickler.dispatch[_code])
