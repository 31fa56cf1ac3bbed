"""What came of one check of a table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """What came of growing one axis, or of another config.

    axis: or the config.
    verdict: exact, broken (another function), refused (by the table), or invalid (the class refuses its config).
    why: where it breaks, or the reason.
    """

    axis: str
    verdict: str
    why: str = ""

    @property
    def stands(self) -> bool:
        """Whether the table needs no change for this axis."""
        return self.verdict in ("exact", "refused")
