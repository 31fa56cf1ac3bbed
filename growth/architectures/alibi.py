"""ALiBi: scores with a bias of slope · distance, where each query head has a slope by its position.

2^k heads have the slopes 2^(-8 i / 2^k), i = 1 … 2^k, and further heads those of 2^(k+1) at odd i. So fresh heads may
follow the old ones as long as there are fewer than 2^(k+1), and none can be a copy.
"""

from growth.architectures.base import Axis

SLOPES = (
    "with ALiBi, so many query heads would have other slopes, because the next power of two changes all of them. Stay "
    "below it, or widen ffn instead."
)
PLACES = (
    "with ALiBi, the slope of a query head depends on its position, which more query heads per KV head would change. "
    "Widen heads instead."
)
SCALED_BIAS = (
    "with ALiBi, the softmax scale would change, and no weight undoes that for the positions. Widen heads instead."
)


def largest_with_slopes(query_heads: int) -> int:
    """Return the largest number of query heads of which the first have the slopes that they have now.

    >>> largest_with_slopes(4), largest_with_slopes(6)
    (7, 7)
    """
    return int(2 ** query_heads.bit_length() - 1)


def sloped(name: str, units: int, largest: int) -> Axis:
    """Return an axis of query heads with slopes, which can grow up to a number of units."""
    return Axis(name, units, fixed=units, refusal=SLOPES, max_size=largest)
