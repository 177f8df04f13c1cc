"""JSON that every reader takes: it has no NaN and no infinity, so what is not finite becomes null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(data: Any, indent: int | None = None) -> str:
    """JSON text; one line unless indented.

    >>> dumps({"loss": float("nan"), "rounds": (1, 2)})
    '{"loss":null,"rounds":[1,2]}'
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(_finite(data), indent=indent, separators=separators, default=str, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data
