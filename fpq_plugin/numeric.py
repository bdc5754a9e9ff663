"""What counts as a number in a config."""

from __future__ import annotations

import math
from typing import Any


def is_number(value: Any, low: float, high: float = math.inf) -> bool:
    """Whether ``value`` is a finite number of ``low`` to ``high``."""
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and math.isfinite(value) and low <= value <= high)
