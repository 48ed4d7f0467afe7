"""The nearest-rank percentile, for what people read: no value that was not measured."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest of the values that at least `share` of them do not exceed; None of nothing.

    Example:
        >>> percentile([4.0, 1.0, 3.0, 2.0], 0.5)
        2.0
    """
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
