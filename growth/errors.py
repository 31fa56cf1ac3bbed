"""What growth raises for its users. Every message says what, where, both values and the remedy."""


class GrowthError(ValueError):
    """A request that cannot be met; nothing was written."""


class ConfigError(GrowthError):
    """A config.json that is unreadable, of an unknown family, or disagrees with itself."""


class RecipeError(GrowthError):
    """A recipe that is unreadable, or whose steps cannot be applied."""


class CheckpointError(GrowthError):
    """Weights that are missing, unknown, mis-shaped, not finite, or unsafe to read."""


class VerificationError(GrowthError):
    """Two checkpoints that cannot be compared."""


class OptimizerError(GrowthError):
    """Training state that cannot grow, or that is not of the models it is said to be of."""


class MissingExtra(GrowthError):
    """A command that needs an optional dependency which is not installed."""

    def __init__(self, package: str, extra: str):
        super().__init__(f"This needs the package '{package}'. Install it: pip install 'growth[{extra}]'")
