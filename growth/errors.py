"""What growth raises for its users. Every message says what, where, both values and the remedy."""

LONGEST = 4000  # characters of a message, which quotes what it refuses


class GrowthError(ValueError):
    """A request that cannot be met; nothing was written.

    >>> print(GrowthError("tensor 'a\\x1b[2Jb' is unknown"))
    tensor 'a\\x1b[2Jb' is unknown
    """

    def __init__(self, message: str):
        super().__init__(printable(message if len(message) <= LONGEST else f"{message[:LONGEST]} …"))


def printable(text: str) -> str:
    """A text with its control characters, half characters and the like as escapes; line ends stay.

    What strangers name must not steer the terminal that it is printed on.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class ConfigError(GrowthError):
    """A config.json that is unreadable, of an unknown family, or disagrees with itself."""


class RecipeError(GrowthError):
    """A recipe that is unreadable, or whose steps cannot be applied."""


class CheckpointError(GrowthError):
    """Weights that are missing, unknown, mis-shaped, not finite, or unsafe to read."""


class ProcessLost(CheckpointError):
    """A process that was at work is there no more; what it and others have done is as it was."""


class VerificationError(GrowthError):
    """Two checkpoints that cannot be compared."""


class OptimizerError(GrowthError):
    """Training state that cannot grow, or that is not of the models it is said to be of."""


class MissingExtra(GrowthError):
    """A command that needs an optional dependency which is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"This needs the package '{package}'. Install it: pip install 'growth[{extra}]'")
