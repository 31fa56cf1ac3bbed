"""The families that can grow, one file each."""

from growth.architecture import Family
from growth.architectures.phi import phi

FAMILIES: dict[str, Family] = {"phi": phi}
