"""What growth raises for its users. Every message says what, where, both values and the remedy."""

import re

LONGEST = 4000  # characters of a line of a message, which quotes what it refuses


class GrowthError(ValueError):
    """A request that cannot be met; nothing was written.

    lines: of the message; a line end within one of them is escaped, since it comes from what the message quotes.

    >>> print(GrowthError("tensor 'a\\x1b[2J\\nb' is unknown", "config.json is missing"))
    tensor 'a\\x1b[2J\\nb' is unknown
    config.json is missing
    """

    def __init__(self, *lines: str):
        super().__init__(*(printable(line if len(line) <= LONGEST else f"{line[:LONGEST]} …") for line in lines))

    def __str__(self) -> str:
        return "\n".join(self.args)


# letters and marks that str.isprintable lets pass though they show nothing (Unicode's Default_Ignorable_Code_Point)
_INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]")


def printable(text: str) -> str:
    """A text on one line, with its control characters, half characters and invisible characters as escapes.

    What untrusted files and arguments name must not steer the terminal that it is printed on, begin a line of its own,
    nor reorder or hide what is printed.

    >>> print(printable("a\\x1b]8;;http://b\\x07c\\u202ed\\u200b\\ne"))
    a\\x1b]8;;http://b\\x07c\\u202ed\\u200b\\ne
    """
    if text.isascii() and text.isprintable():
        return text
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return _INVISIBLE.sub(lambda found: ascii(found[0])[1:-1], shown)


class ConfigError(GrowthError):
    """A config.json that is unreadable, of an unknown family, or disagrees with itself."""


class RecipeError(GrowthError):
    """A recipe that is unreadable, or whose steps cannot be applied."""


class CheckpointError(GrowthError):
    """Weights that are missing, unknown, mis-shaped, not finite, or unsafe to read."""


class WorkerDied(CheckpointError):
    """A process that was at work is there no more; what it and others have done is as it was."""


class VerificationError(GrowthError):
    """Two checkpoints that cannot be compared."""


class OptimizerError(GrowthError):
    """Training state that cannot grow, or that is not of the models it is said to be of."""


class MissingExtra(GrowthError):
    """A command that needs an optional dependency which is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"This needs the package '{package}'. Install it: pip install 'growth[{extra}]'")
