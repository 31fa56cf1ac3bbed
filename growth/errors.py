"""Errors that growth raises. Each message says what, where, both values and the remedy."""

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_LINE = 4000  # characters; a message quotes untrusted input of any length


class GrowthError(ValueError):
    r"""A request that cannot be met; nothing was written.

    lines: the lines of the message. Control characters and line breaks within a line are escaped, because they come
        from quoted input.

    >>> print(GrowthError("tensor 'a\x1b[2J\nb' is unknown", "config.json is missing"))
    tensor 'a\x1b[2J\nb' is unknown
    config.json is missing
    """

    def __init__(self, *lines: str):
        super().__init__(*(printable(line if len(line) <= MAX_LINE else f"{line[:MAX_LINE]} …") for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


# characters that str.isprintable accepts and that show nothing (Unicode: Default_Ignorable_Code_Point)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def printable(text: str) -> str:
    r"""Escape control characters, surrogates and invisible characters of a text, so that it stays on one line.

    Names from untrusted files and arguments must not control the terminal, start a line, or reorder or hide output.

    >>> print(printable("a\x1b]8;;http://b\x07c\u202ed\u200b\ne"))
    a\x1b]8;;http://b\x07c\u202ed\u200b\ne
    """
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], shown)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question that ends a message, for the known word that is most like an unknown one; empty if none is.

    >>> did_you_mean("intreleave", ["stack", "interleave"])
    " Did you mean 'interleave'?"
    """
    from difflib import get_close_matches

    near = get_close_matches(word, list(known), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


class ConfigError(GrowthError):
    """A config.json that is unreadable, of an unknown family, or inconsistent.

    >>> import growth
    >>> growth.plan("double-depth", "examples/phi-mini", dtype="int8")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    growth.errors.ConfigError: Unknown dtype 'int8': use one of float16, fp16, bfloat16, ...
    """


class RecipeError(GrowthError):
    """A recipe that is unreadable, or whose steps cannot be applied.

    >>> import growth
    >>> growth.plan(growth.widen("vocabulary", factor=2), "examples/phi-mini")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    growth.errors.RecipeError: Cannot widen 'vocabulary': the axes of this family are residual, ffn, ...
    """


@contextmanager
def in_step(where: str) -> Iterator[None]:
    """Name the step of a recipe or a chain in the error of an operator, which becomes a RecipeError.

    >>> with in_step("double.yaml, step 2 (deepen)"):
    ...     raise ConfigError("config.json states no number of layers.")
    Traceback (most recent call last):
        ...
    growth.errors.RecipeError: double.yaml, step 2 (deepen): config.json states no number of layers.
    """
    try:
        yield
    except GrowthError as error:
        raise RecipeError(f"{where}: {error}") from None


class CheckpointError(GrowthError):
    """Weights that are missing, unknown, of a wrong shape, not finite, or unsafe to read.

    >>> import growth
    >>> growth.verify_weights("examples/phi-mini", "no-such-folder")
    Traceback (most recent call last):
        ...
    growth.errors.CheckpointError: There is no checkpoint folder at no-such-folder: name the grown folder.
    """


class WorkerDied(CheckpointError):
    """A worker process that ended unexpectedly; finished work stays valid."""


class VerificationError(GrowthError):
    """Two checkpoints that cannot be compared."""


class SwappedFolders(VerificationError):
    """A source and what it grew into, named in the wrong order.

    found: the sentence that says what shows it.
    source, grown: as they were named.

    >>> raise SwappedFolders("small/growth.json says that small was grown from large.", "small", "large")
    Traceback (most recent call last):
        ...
    growth.errors.SwappedFolders: small/growth.json says that small was grown from large. Name the source first, then \
what it grew into: growth verify large small
    """

    def __init__(self, found: str, source: Path | str, grown: Path | str):
        self.found, self.source, self.grown = found, Path(source), Path(grown)
        super().__init__(f"{found} {self.remedy(['growth', 'verify', str(source), str(grown)])}")

    def remedy(self, command: Iterable[str]) -> str:
        """What to do: the command that was given, with the two folders exchanged and all its options."""
        other = {self.source: self.grown, self.grown: self.source}
        words = shlex.join(str(other.get(Path(word).expanduser(), word)) for word in command)
        return f"Name the source first, then what it grew into: {words}"


class OptimizerError(GrowthError):
    """Training state that cannot grow, or that belongs to a different model."""


class MissingExtra(GrowthError):
    """An optional dependency that a command needs and that is not installed.

    >>> raise MissingExtra("rich", "report")
    Traceback (most recent call last):
        ...
    growth.errors.MissingExtra: The package 'rich' is not installed. Install it: pip install 'growth[report]'
    """

    def __init__(self, package: str, extra: str):
        super().__init__(f"The package '{package}' is not installed. Install it: pip install 'growth[{extra}]'")
